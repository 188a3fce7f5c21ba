// What attention forward and backward share: the grid of tiles and the masking of its diagonal.
//
// Positions are cut into tiles at multiples of kAttentionTile counted from position 0, queries and keys alike. So a
// call for some of the queries, begun at such a multiple, does exactly what the call for all queries does for these.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/cpu/vec_math.h"

namespace tmamba {

inline constexpr int64_t kAttentionTile = 128;

// Rows of a tile of scores are padded to whole vectors.
inline constexpr int64_t kLanes = 16;

// Positions [begin, end) of a tile.
struct TileRange {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// The tiles of the positions [begin, end): whole tiles but for the first and the last.
struct TileGrid {
  int64_t begin, end, first, count;
  TileGrid(int64_t from, int64_t to)
      : begin(from), end(to), first(from / kAttentionTile), count(ceil_div(to, kAttentionTile) - first) {}
  TileRange operator[](int64_t i) const {
    const int64_t tile = (first + i) * kAttentionTile;
    return {std::max(begin, tile), std::min(end, tile + kAttentionTile)};
  }
};

// How many keys of the tile the query at `position` sees.
inline int64_t visible_keys(int64_t position, const TileRange& keys) {
  return std::clamp<int64_t>(position + 1 - keys.begin, 0, keys.count());
}

}  // namespace tmamba
