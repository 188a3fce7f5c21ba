// Kernels over a list of tensors that is passed as a kernel parameter. The blocks of a launch are divided among the
// entries; each entry stores its first block.
#pragma once

#include <cstdint>

namespace tmamba::cuda {

// The index of the entry of `list` to which `block` belongs.
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
