// Shared parts of the SSM scan's Hopper kernels: decoding of work items, tensor maps, loads and stores of tokens.
#pragma once

#include "kernels/cuda/common/wgmma.cuh"
#include "kernels/cuda/ssd/ssd_tiles.cuh"

namespace tmamba::cuda {

// Decodes a flat work-item index into (sequence, head, chunk); chunks of one head are consecutive.
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

// Tensor maps for tiles of a chunk's tokens, and of chunk states [items, D, D].
template <int D>
CUtensorMap token_map(const SsdInputs<bf16_t>& in, const Cubes<const bf16_t>& x) {
  return x.data == nullptr || !in.aligned16 ? CUtensorMap{} : make_tensor_map(x, in.B, in.T, in.H, D, kChunk);
}
template <int D>
CUtensorMap state_map(const void* states, int64_t items) {
  return make_tensor_map({static_cast<const bf16_t*>(states), D * D, D, D}, items, D, 1, D, D);
}

// Loads a chunk's tokens by TMA, from one thread; the rows must be 16-byte aligned.
template <int D>
__device__ inline void tma_load_tokens(bf16_t* tile, const CUtensorMap& map, TransactionBarrier& full, int64_t b,
                                       int64_t h, int64_t begin) {
  load_swizzled_tile<kChunk, D>(tile, map, {}, full, b, h, begin, 0, true);
}

// Copies a chunk's first `count` tokens with kThreads threads and fills the other rows with zeros: for rows that are
// not 16-byte aligned. The caller then needs fence_view_async_shared() and a barrier.
template <int D, int kThreads>
__device__ inline void copy_tokens(bf16_t* tile, const Cubes<const bf16_t>& from, int64_t b, int64_t h, int64_t begin,
                                   int64_t count) {
  for (int i = threadIdx.x % kThreads; i < kChunk * D; i += kThreads) {
    const int row = i / D, col = i % D;
    tile[panel_index<kChunk>(row, col)] = row < count ? from.at(b, begin + row, h)[col] : bf16_t{};
  }
}

// By which token's dt an element of a token-by-token matrix is weighted: the column's, the row's, or none.
enum class PairWeights { columns, rows, none };

// Turns the dot products (first_r . second_c) of a chunk's tokens into the operand of the intra-chunk GEMM: multiplies
// by exp(c_t - c_s) and the weight, and sets elements with t < s to 0. If rows_later, t is the row's token, otherwise
// the column's. A pair (s, t) gives the same bits in both layouts. Returns the thread's part of the sum of the input's
// diagonal.
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
      x = (rows_later ? c <= r : r <= c) ? x * weight : 0.0f;  // the weight may be infinite in masked elements
    }
  }
  return diagonal;
}

// Scales the thread's two rows.
template <int kN>
__device__ inline void scale_rows(float (&acc)[kN][4], float first, float second) {
#pragma unroll
  for (int n = 0; n < kN; ++n) acc[n][0] *= first, acc[n][1] *= first, acc[n][2] *= second, acc[n][3] *= second;
}

// Stores a warpgroup's rows of a chunk of `count` tokens at columns from `column` on, or adds them if `adds`.
template <int kN>
__device__ inline void store_tokens(const Cubes<bf16_t>& to, const float (&acc)[kN][4], int64_t b, int64_t h,
                                    int64_t begin, int count, int column, bool adds, bool aligned16) {
  const auto half = [&]<int kHalf>() {
    const int t = accumulator_row() + kHalf * 8;
    const bool here = t < count;
    bf16_t* out = to.at(b, begin + (here ? t : 0), h) + column;
    if (aligned16 && !adds) return store_row<kHalf>(out, acc, here);
    if (!here) return;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      bf16_t* pair = out + n * 8 + accumulator_column();
      float first = 0, second = 0;
      if (adds) load_pair(pair, first, second, aligned16);
      store_pair(pair, first + acc[n][kHalf * 2], second + acc[n][kHalf * 2 + 1], aligned16);
    }
  };
  half.template operator()<0>(), half.template operator()<1>();
}

}  // namespace tmamba::cuda
