// Shared parts of the two Hopper kernels of attention backward. In one, blocks own keys and iterate over the queries
// that attend to them (dk, dv); in the other, blocks own queries and iterate over the keys they attend to (dq). Both
// recompute the probabilities from lse, so neither needs atomics.
//   p = exp(q . k scale - lse);  dp = do . v;  ds = p (dp - do . o)
//   dv = p^T do;  dk = scale ds^T q;  dq = scale ds k
// While the tensor cores compute the gradients of one tile, each warpgroup computes p and ds of the next.
#pragma once

#include "kernels/cuda/attention/attention_wgmma.cuh"

namespace tmamba::cuda {

inline constexpr int kBackwardStages = 3;  // tiles in the pipeline
inline constexpr int kQueryTile = 64;      // queries per tile, where blocks own keys

struct BackwardArgs {
  AttentionBackwardViews<bf16_t> f;
  BlockOrder order;
  // [B * H, pitch]: lse in base 2 (infinity for rows beyond T) and do . o (0 there).
  float *lse, *delta;
  int64_t pitch;
  CUtensorMap q, d_o, k, v;
};

// Fills in the tensor maps for tiles of these numbers of rows, if all tensors are aligned.
inline void make_maps(BackwardArgs& args, int query_rows, int key_rows) {
  const AttentionBackwardViews<bf16_t>& f = args.f;
  const AttentionSizes& s = f.size;
  if (!s.aligned16) return;
  args.q = make_tensor_map(f.q, s.B, s.T, s.H, s.D, query_rows);
  args.d_o = make_tensor_map(f.d_o, s.B, s.T, s.H, s.D, query_rows);
  args.k = make_tensor_map(f.k, s.B, s.keys(), s.H, s.D, key_rows);
  args.v = make_tensor_map(f.v, s.B, s.keys(), s.H, s.D, key_rows);
}

// Launch the kernels. They set `order` and the tensor maps of their copy of `args`.
template <int D>
void wgmma_key_gradient(cudaStream_t stream, BackwardArgs args);
template <int D>
void wgmma_query_gradient(cudaStream_t stream, BackwardArgs args);

// The first of the thread's two rows within the block.
[[maybe_unused]] __device__ inline int first_row() {
  return (static_cast<int>(threadIdx.x) / kWarpGroup - 1) * kGroupRows + accumulator_row();
}

// Waits for tile j and starts the GEMMs of the block's own rows with it that give p and dp, one batch each.
template <int D, int kRows>
__device__ __forceinline__ void start_scores(float (&p)[kRows / 8][4], float (&dp)[kRows / 8][4],
                                             const SmemDescriptor<true, kBlockRows>& p_own,
                                             const SmemDescriptor<true, kBlockRows>& dp_own,
                                             Pipeline<kBackwardStages>& pipeline,
                                             const bf16_t (&p_tiles)[kBackwardStages][kRows * D],
                                             const bf16_t (&dp_tiles)[kBackwardStages][kRows * D], int64_t j) {
  const PipelineState<kBackwardStages> state(j);
  pipeline.consumer_wait(state);
  warpgroup_arrive();
  warpgroup_gemm<D / 16>(p, p_own, SmemDescriptor<true, kRows>(p_tiles[state.stage]), false);
  warpgroup_commit_batch();
  warpgroup_gemm<D / 16>(dp, dp_own, SmemDescriptor<true, kRows>(dp_tiles[state.stage]), false);
  warpgroup_commit_batch();
}

// Turns scores into probabilities. lse(n, e) returns the value for an accumulator element; masked(column, half) returns
// whether the thread's row number `half` does not attend to the column.
template <int kN, class Lse, class Masked>
__device__ inline void probabilities(float (&score)[kN][4], float scale, bool masks, const Lse& lse,
                                     const Masked& masked) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) score[n][e] = exp2_approx(score[n][e] * scale - lse(n, e));
  }
  if (!masks) return;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (masked(n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2, e / 2)) score[n][e] = 0;
    }
  }
}

// Runs a consumer warpgroup over its tiles. scores(j) starts the GEMMs that give p and dp of a tile, one batch each;
// p<n>(j) and ds<n>(j) wait until at most n batches are in flight and compute p and ds; round() rounds both to
// bfloat16; gradients(j) starts the GEMMs with the rounded values, and done(j) waits for them. Without kOverlaps (too
// few registers) only the other warpgroups keep the tensor cores busy during p and ds.
template <bool kOverlaps, class Scores, class P, class Ds, class Round, class Gradients, class Done>
__device__ inline void run_tiles(int64_t tiles, const Scores& scores, const P& p, const Ds& ds, const Round& round,
                                 const Gradients& gradients, const Done& done) {
  if constexpr (!kOverlaps) {
    for (int64_t j = 0; j < tiles; ++j) {
      scores(j);
      p.template operator()<1>(j), ds.template operator()<0>(j), round();
      gradients(j);
      done(j);
    }
    return;
  }
  scores(0);
  p.template operator()<1>(0), ds.template operator()<0>(0), round();
  for (int64_t j = 1; j < tiles; ++j) {
    scores(j);
    gradients(j - 1);
    p.template operator()<2>(j), ds.template operator()<1>(j);
    done(j - 1), round();
  }
  gradients(tiles - 1);
  done(tiles - 1);
}

}  // namespace tmamba::cuda
