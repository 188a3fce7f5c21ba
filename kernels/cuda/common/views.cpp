#include "kernels/cuda/common/views.h"

namespace tmamba::cuda {

namespace {

bool aligned16(const ConstTensor& x) {
  if (x.empty()) return true;
  const auto size = static_cast<int64_t>(size_of(x.dtype()));
  const int last = x.dims() - 1;
  if (reinterpret_cast<uint64_t>(x.raw()) % 16 != 0 || x.size(last) * size % 16 != 0) return false;
  for (int dim = 0; dim < last; ++dim) {
    if (x.size(dim) > 1 && x.stride(dim) * size % 16 != 0) return false;
  }
  return true;
}

}  // namespace

bool rows_aligned16(std::initializer_list<ConstTensor> tensors) {
  for (const ConstTensor& x : tensors) {
    if (!aligned16(x)) return false;
  }
  return true;
}

}  // namespace tmamba::cuda
