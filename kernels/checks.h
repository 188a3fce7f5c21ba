// What every op begins with on any device: checks of its tensors.
#pragma once

#include <initializer_list>

#include "kernels/base/tensor.h"

namespace tmamba {

// Throws Error naming the tensor unless it has this type and these sizes, lies on `device` and has a contiguous last
// dimension.
void expect_on(Device device, const ConstTensor& x, const char* name, DType dtype,
               std::initializer_list<int64_t> sizes);

}  // namespace tmamba
