// rows_aligned16(): whether kernels may access a tensor's rows in 16-byte vectors.
#pragma once

#include <initializer_list>

#include "kernels/base/tensor.h"

namespace tmamba::cuda {

// Whether each row (along the last dimension) of each of these tensors starts at a multiple of 16 bytes and has a
// multiple of 16 bytes, so that kernels can read and write it in 16-byte vectors. Absent tensors are ignored.
bool rows_aligned16(std::initializer_list<ConstTensor> tensors);

}  // namespace tmamba::cuda
