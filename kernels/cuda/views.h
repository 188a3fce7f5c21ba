// What every CUDA op begins with: checks of its tensors.
#pragma once

#include <initializer_list>

#include "kernels/base/tensor.h"

namespace tmamba::cuda {

// Throws Error naming the tensor unless it has this type and these sizes, lies on the GPU and has a contiguous last
// dimension.
void expect(const ConstTensor& x, const char* name, DType dtype, std::initializer_list<int64_t> sizes);
// The same, but the tensor may be absent.
void expect_optional(const ConstTensor& x, const char* name, DType dtype, std::initializer_list<int64_t> sizes);

// Whether every row (run along the last dimension) of every one of these tensors starts at a multiple of 16 bytes and
// is a whole number of 16 bytes, so that it can be read and written by 16. Absent tensors do not count.
bool wide_rows(std::initializer_list<ConstTensor> tensors);

}  // namespace tmamba::cuda
