// The head and state widths that the tensor-core kernels of attention and of the SSM scan support.
#pragma once

#include <cstdint>

namespace tmamba::cuda {

constexpr bool is_tile_width(int64_t D) { return D == 64 || D == 96 || D == 128; }

// Calls f.template operator()<D>(); is_tile_width(D) must hold.
template <class F>
decltype(auto) dispatch_tile_width(int64_t D, const F& f) {
  if (D == 64) return f.template operator()<64>();
  if (D == 96) return f.template operator()<96>();
  return f.template operator()<128>();
}

}  // namespace tmamba::cuda
