// What the two kernels of attention backward on Hopper share. One owns keys and walks the queries that see them (dk,
// dv), the other owns queries and walks the keys they see (dq); both compute the probabilities again from lse, so that
// neither needs atomics.
//   p = exp(q . k scale - lse);  dp = do . v;  ds = p (dp - do . o)
//   dv = p^T do;  dk = scale ds^T q;  dq = scale ds k
// While the tensor cores turn one tile into gradients, each warpgroup computes p and ds of the next.
#pragma once

#include "kernels/cuda/attention/attention_wgmma.cuh"

namespace tmamba::cuda {

inline constexpr int kBackwardStages = 3;  // tiles under way at once
inline constexpr int kQueryTile = 64;      // queries of a tile of the walk over them

struct BackwardArgs {
  AttentionBackwardViews<bf16_t> f;
  BlockOrder order;
  // [B * H, pitch]: lse in units of log 2 (infinite for rows beyond T) and do . o (0 there).
  float *lse, *delta;
  int64_t pitch;
  CUtensorMap q, d_o, k, v;
};

// Maps of tiles of these numbers of rows, where rows are wide.
inline void make_maps(BackwardArgs& args, int query_rows, int key_rows) {
  const AttentionBackwardViews<bf16_t>& f = args.f;
  const AttentionSizes& s = f.size;
  if (!s.wide) return;
  args.q = panel_map(f.q, s.B, s.T, s.H, s.D, query_rows);
  args.d_o = panel_map(f.d_o, s.B, s.T, s.H, s.D, query_rows);
  args.k = panel_map(f.k, s.B, s.keys(), s.H, s.D, key_rows);
  args.v = panel_map(f.v, s.B, s.keys(), s.H, s.D, key_rows);
}

// They fill in order and maps.
template <int D>
void wgmma_key_gradient(cudaStream_t stream, BackwardArgs args);
template <int D>
void wgmma_query_gradient(cudaStream_t stream, BackwardArgs args);

// The thread's first row within the block.
[[maybe_unused]] __device__ inline int first_row() {
  return (static_cast<int>(threadIdx.x) / kWarpGroup - 1) * kGroupRows + accumulator_row();
}

// When tile j of the walk has come, begins the products of the block's own rows with it that give p and dp, a group
// each.
template <int D, int kRows>
__device__ __forceinline__ void begin_pair(float (&p)[kRows / 8][4], float (&dp)[kRows / 8][4],
                                           const Factor<true, kBlockRows>& p_own,
                                           const Factor<true, kBlockRows>& dp_own, Ring<kBackwardStages>& ring,
                                           const bf16_t (&p_tiles)[kBackwardStages][kRows * D],
                                           const bf16_t (&dp_tiles)[kBackwardStages][kRows * D], int64_t j) {
  const Turn<kBackwardStages> turn(j);
  ring.full[turn.stage].wait(turn.parity);
  begin_products();
  group_product<D / 16>(p, p_own, Factor<true, kRows>(p_tiles[turn.stage]), false);
  commit_products();
  group_product<D / 16>(dp, dp_own, Factor<true, kRows>(dp_tiles[turn.stage]), false);
  commit_products();
}

// Scores in, probabilities out. lse(n, e); masked(column, half) says what the thread's row g + 8 half does not see.
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

// Runs a warpgroup over its tiles. scores(j) begins the products that give p and dp of a tile, one group each; p<n>(j)
// and ds<n>(j) wait until n groups are under way and compute with them; round() rounds both; gradients(j) begins the
// products with what was rounded, and done(j) waits for these. Where it does not overlap (not enough registers), the
// other warpgroups alone keep the tensor cores busy.
template <bool kOverlaps, class Scores, class P, class Ds, class Round, class Gradients, class Done>
__device__ inline void walk_tiles(int64_t tiles, const Scores& scores, const P& p, const Ds& ds, const Round& round,
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
