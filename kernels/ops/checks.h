// What the check of every op's tensors (op_checks.h) is made of.
#pragma once

#include <initializer_list>

#include "kernels/base/tensor.h"

namespace tmamba {

// Throws Error naming the tensor unless it has this type and these sizes, lies on `device` and has a contiguous last
// dimension.
void expect_on(Device device, const ConstTensor& x, const char* name, DType dtype,
               std::initializer_list<int64_t> sizes);
// The same, but the tensor may be absent.
void expect_optional_on(Device device, const ConstTensor& x, const char* name, DType dtype,
                        std::initializer_list<int64_t> sizes);

// How messages name the place where an op runs.
constexpr const char* place_of(Device device) { return device == Device::cpu ? "cpu" : "GPU"; }

}  // namespace tmamba
