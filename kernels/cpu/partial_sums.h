// Sums over rows (gradients of parameters): each group of rows sums into its own line of scratch, then the lines are
// added in order.
#pragma once

#include "kernels/cpu/parallel.h"

namespace tmamba {

// out_i += sum over lines g of partial[g * width + i]
template <class T>
void add_partial_rows(T* out, const T* partial, int64_t lines, int64_t width) {
  parallel_blocks(width, 256, [&](int64_t begin, int64_t end) {
    for (int64_t g = 0; g < lines; ++g) {
      const T* line = partial + g * width;
      for (int64_t i = begin; i < end; ++i) out[i] += line[i];
    }
  });
}

}  // namespace tmamba
