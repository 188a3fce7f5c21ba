// What every CUDA op asks of its tensors: whether they can be read by 16 bytes.
#pragma once

#include <initializer_list>

#include "kernels/base/tensor.h"

namespace tmamba::cuda {

// Whether every row (run along the last dimension) of every one of these tensors starts at a multiple of 16 bytes and
// is a whole number of 16 bytes, so that it can be read and written by 16. Absent tensors do not count.
bool wide_rows(std::initializer_list<ConstTensor> tensors);

}  // namespace tmamba::cuda
