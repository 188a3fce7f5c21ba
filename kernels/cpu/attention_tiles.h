// Shared by attention forward and backward: the grid of tiles and the masking of its diagonal.
//
// Queries are cut into tiles at multiples of kQueryTile counted from position 0, keys at multiples of kKeyTile. So a
// call for some of the queries, begun at a multiple of kQueryTile, does exactly what the call for all of them does for
// these. No tile of queries reaches over a border of two tiles of keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/cpu/vec_math.h"

namespace tmamba {

inline constexpr int64_t kQueryTile = 64, kKeyTile = 128;
static_assert(kKeyTile % kQueryTile == 0);

// Positions [begin, end) of a tile.
struct TileRange {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// The tiles of `size` of the positions [begin, end): whole tiles but for the first and the last.
struct TileGrid {
  int64_t begin, end, size, first, count;
  TileGrid(int64_t from, int64_t to, int64_t tile_size)
      : begin(from), end(to), size(tile_size), first(from / size), count(ceil_div(to, size) - first) {}
  TileRange operator[](int64_t i) const {
    const int64_t tile = (first + i) * size;
    return {std::max(begin, tile), std::min(end, tile + size)};
  }
};

// How many keys of the tile the query at `position` sees.
inline int64_t visible_keys(int64_t position, const TileRange& keys) {
  return std::clamp<int64_t>(position + 1 - keys.begin, 0, keys.count());
}

// BLAS multiplies small tiles a third faster when the right-hand one is packed and not to be transposed.
// to [count, D] = rows `stride` apart
template <class A>
void pack_rows(A* to, const A* from, int64_t stride, int64_t count, int64_t D) {
  for (int64_t i = 0; i < count; ++i) std::copy_n(from + i * stride, D, to + i * D);
}
// to [D, kKeyTile] = rows `stride` apart, as columns
template <class A>
void pack_columns(A* to, const A* from, int64_t stride, int64_t count, int64_t D) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < D; ++c) to[c * kKeyTile + i] = from[i * stride + c];
  }
}

}  // namespace tmamba
