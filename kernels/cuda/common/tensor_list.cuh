// Kernels over a list of tensors that travels as a kernel parameter: the blocks of one launch are shared out among its
// entries, each of which knows the first of its own.
#pragma once

#include <cstdint>

namespace tmamba::cuda {

// The entry of `list` whose blocks hold this one.
template <class List>
__device__ inline int entry_with_block(const List& list, int64_t block) {
  int low = 0, high = list.entries;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (list.entry[middle].first_block <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace tmamba::cuda
