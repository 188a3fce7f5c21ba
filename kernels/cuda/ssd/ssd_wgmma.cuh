// What the SSM scan's kernels for Hopper share: where a chunk is, and its tiles.
#pragma once

#include "kernels/cuda/common/wgmma.cuh"
#include "kernels/cuda/ssd/ssd_tiles.cuh"

namespace tmamba::cuda {

// Of all the chunks of the heads at once, head by head, one.
struct ChunkItem {
  int64_t chunk, head, b, h, begin;
  int count;
  __device__ ChunkItem(const SsdInputs<bf16_t>& in, const SsdGrid& grid, int64_t first_head, int64_t item) {
    const DivMod at(item, grid.chunks);
    chunk = at.remainder, head = first_head + at.quotient;
    const DivMod sequence(head, in.H);
    b = sequence.quotient, h = sequence.remainder, begin = chunk * kChunk;
    count = static_cast<int>(in.T - begin < kChunk ? in.T - begin : kChunk);
  }
};

// Maps of tiles of a chunk's tokens, and of the states [items, D, D] that a walk left.
template <int D>
CUtensorMap token_map(const SsdInputs<bf16_t>& in, const Cubes<const bf16_t>& x) {
  return x.data == nullptr || !in.wide ? CUtensorMap{} : panel_map(x, in.B, in.T, in.H, D, kChunk);
}
template <int D>
CUtensorMap state_map(const void* states, int64_t items) {
  return panel_map({static_cast<const bf16_t*>(states), D * D, D, D}, items, D, 1, D, D);
}

// One thread: a chunk's tokens by the copy engine; needs wide rows.
template <int D>
__device__ inline void fetch_tokens(bf16_t* tile, const CUtensorMap& map, Barrier& full, int64_t b, int64_t h,
                                    int64_t begin) {
  fetch_tile<kChunk, D>(tile, map, {}, full, b, h, begin, 0, true);
}

// kThreads threads: a chunk's first `count` tokens, zeros below, where rows are not wide. Behind it comes
// publish_writes() and a barrier.
template <int D, int kThreads>
__device__ inline void copy_tokens(bf16_t* tile, const Cubes<const bf16_t>& from, int64_t b, int64_t h, int64_t begin,
                                   int64_t count) {
  for (int i = threadIdx.x % kThreads; i < kChunk * D; i += kThreads) {
    const int row = i / D, col = i % D;
    tile[panel_index<kChunk>(row, col)] = row < count ? from.at(b, begin + row, h)[col] : bf16_t{};
  }
}

// The tokens' weights in a product over a chunk: dt of the column's, of the row's, or none.
enum class PairWeights { columns, rows, none };

// (first_r . second_c) of a chunk's rows in, the factor of the intra-chunk product out: times exp(c_t - c_s) and the
// weight, and 0 where t < s. t is the row's token where rows_later, else the column's. The same pair comes to the same
// bits in either layout. Returns the thread's share of the sum over the diagonal as it came in.
[[maybe_unused]] __device__ inline float decay_pairs(float (&pair)[kChunk / 8][4], const ChunkDecays& decays,
                                                     bool rows_later, PairWeights weights) {
  const int row = accumulator_row(), column = accumulator_column();
  const float sign = rows_later ? 1 : -1;
  const float own[2] = {sign * decays.log2[row], sign * decays.log2[row + 8]};
  float row_dt[2] = {1, 1}, diagonal = 0;
  if (weights == PairWeights::rows) row_dt[0] = decays.dt[row], row_dt[1] = decays.dt[row + 8];
#pragma unroll
  for (int n = 0; n < kChunk / 8; ++n) {
    const float2 log2 = *reinterpret_cast<const float2*>(decays.log2 + n * 8 + column);
    float2 dt{1, 1};
    if (weights == PairWeights::columns) dt = *reinterpret_cast<const float2*>(decays.dt + n * 8 + column);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int c = n * 8 + column + e % 2, r = row + e / 2 * 8;
      const float weight =
          exp2_approx(own[e / 2] - sign * (e % 2 == 0 ? log2.x : log2.y)) * (e % 2 == 0 ? dt.x : dt.y) * row_dt[e / 2];
      float& x = pair[n][e];
      if (c == r) diagonal += x;
      x = (rows_later ? c <= r : r <= c) ? x * weight : 0.0f;  // the weight may be infinite elsewhere
    }
  }
  return diagonal;
}

// Scales a thread's two rows.
template <int kN>
__device__ inline void scale_rows(float (&acc)[kN][4], float first, float second) {
#pragma unroll
  for (int n = 0; n < kN; ++n) acc[n][0] *= first, acc[n][1] *= first, acc[n][2] *= second, acc[n][3] *= second;
}

// Writes a warpgroup's rows of a chunk of `count` tokens, columns from `column` on, or adds them.
template <int kN>
__device__ inline void store_tokens(const Cubes<bf16_t>& to, const float (&acc)[kN][4], int64_t b, int64_t h,
                                    int64_t begin, int count, int column, bool adds, bool wide) {
  const auto half = [&]<int kHalf>() {
    const int t = accumulator_row() + kHalf * 8;
    const bool here = t < count;
    bf16_t* out = to.at(b, begin + (here ? t : 0), h) + column;
    if (wide && !adds) return store_row<kHalf>(out, acc, here);
    if (!here) return;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      bf16_t* pair = out + n * 8 + accumulator_column();
      float first = 0, second = 0;
      if (adds) load_pair(pair, first, second, wide);
      store_pair(pair, first + acc[n][kHalf * 2], second + acc[n][kHalf * 2 + 1], wide);
    }
  };
  half.template operator()<0>(), half.template operator()<1>();
}

}  // namespace tmamba::cuda
