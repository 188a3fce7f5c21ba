// The gradients of one chunk of the SSM scan, portable, given S before the chunk and G after it.
// With E = exp(c_t - c_s) for s <= t:
//   dq_t = exp(c_t) S dy_t + sum_s (dy_t . v_s) E dt_s k_s
//   dk_s = exp(c_last - c_s) dt_s G v_s + sum_t (dy_t . v_s) E dt_s q_t
//   dv_s = dt_s u_s + D dy_s,  ddt_s = u_s . v_s,  u_s = exp(c_last - c_s) G^T k_s + sum_t (q_t . k_s) E dy_t
// log_a_j scales every contribution of tokens before j to token j and later ones:
//   dlog_a_j = exp(c_last) <S, G> + keys before j through G + queries from j on through S + pairs (s < j <= t)
#include "kernels/cuda/ssd/ssd_tiles.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kHalf = kChunk / 2;       // columns of a token-by-token matrix that a warp computes
constexpr int kPairs = kPitch<kChunk>;  // pitch of these matrices in shared memory

template <int D>
struct Shared {
  bf16_t q[kChunk * kPitch<D>], k[kChunk * kPitch<D>], v[kChunk * kPitch<D>], dy[kChunk * kPitch<D>];
  bf16_t state[D * kPitch<D>], adjoint[D * kPitch<D>];
  bf16_t scores[kChunk * kPairs];   // (q_t . k_s) E
  bf16_t dscores[kChunk * kPairs];  // (dy_t . v_s) E dt_s
  ChunkDecays decays;
  // Row sums; two warps hold one half of each row. by_*: dot products with the rows of q, k, v.
  float by_query[2][kChunk], by_key[2][kChunk], by_value[2][kChunk], row_pairs[2][kChunk];
  float column_pairs[kChunk / 16][kChunk];
  float state_dot[kWarps], skip[kWarps];
};

// The part of a warp: 16 rows (tokens) and one half of the columns.
struct WarpPlace {
  int warp, lane, rows, half, g, q2;
  __device__ WarpPlace() {
    warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    rows = warp % 4, half = warp / 4;
    g = lane / 4, q2 = lane % 4 * 2;
  }
  __device__ int token(int e) const { return rows * 16 + g + e / 2 * 8; }
};

// Stores scores and dscores to shared memory, and the sums of their elementwise product by row and by column. Returns
// the thread's part of sum_t dy_t . v_t.
template <int D>
__device__ float pairs_of_tokens(Shared<D>& shared, const WarpPlace& at) {
  constexpr int kN = kHalf / 8;
  float a[1][kN][4] = {}, b[1][kN][4] = {};
  const int row = at.rows * 16 * kPitch<D>, column = at.half * kHalf * kPitch<D>;
  warp_gemm<1, kN, D / 16, false, false>(a, shared.q + row, kPitch<D>, shared.k + column, kPitch<D>);
  warp_gemm<1, kN, D / 16, false, false>(b, shared.dy + row, kPitch<D>, shared.v + column, kPitch<D>);
  float skip = 0, by_row[2] = {};
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    float by_column[2] = {};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int t = at.token(e), s = at.half * kHalf + n * 8 + at.q2 + e % 2;
      if (s == t) skip += b[0][n][e];
      const float decay = shared.decays.between(t, s);
      a[0][n][e] *= decay;
      const float product = b[0][n][e] * shared.decays.dt[s];
      const float pair = s < t ? a[0][n][e] * product : 0.0f;
      b[0][n][e] = product * decay;
      by_row[e / 2] += pair, by_column[e % 2] += pair;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int step = 4; step < kWarp; step *= 2) by_column[e] += __shfl_xor_sync(0xFFFFFFFFu, by_column[e], step);
      if (at.g == 0) shared.column_pairs[at.rows][at.half * kHalf + n * 8 + at.q2 + e] = by_column[e];
      const int place = at.token(e * 2) * kPairs + at.half * kHalf + n * 8 + at.q2;
      store_pair(shared.scores + place, a[0][n][e * 2], a[0][n][e * 2 + 1], true);
      store_pair(shared.dscores + place, b[0][n][e * 2], b[0][n][e * 2 + 1], true);
    }
  }
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    by_row[e] = warp_sum<4>(by_row[e]);
    if (at.lane % 4 == 0) shared.row_pairs[at.half][at.token(e * 2)] = by_row[e];
  }
  return skip;
}

// Scales the rows of a warp's accumulators, then stores their dot products with the same part of `tile` in `sums`.
template <int D, class RowScale>
__device__ void scale_and_dot(float (&acc)[1][D / 16][4], const bf16_t* tile, float (&sums)[2][kChunk],
                              const WarpPlace& at, const RowScale& row_scale) {
  float sum[2] = {};
#pragma unroll
  for (int n = 0; n < D / 16; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int t = at.token(e);
      acc[0][n][e] *= row_scale(t);
      sum[e / 2] += acc[0][n][e] * widen(tile[t * kPitch<D> + at.half * (D / 2) + n * 8 + at.q2 + e % 2]);
    }
  }
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    sum[e] = warp_sum<4>(sum[e]);
    if (at.lane % 4 == 0) sums[at.half][at.token(e * 2)] = sum[e];
  }
}

// Stores a warp's part of a gradient, or adds it if `adds`.
template <int D>
__device__ void store_rows(const Cubes<bf16_t>& to, const float (&acc)[1][D / 16][4], const ChunkPlace& place,
                           const WarpPlace& at, bool adds, bool aligned16) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int t = at.token(e * 2);
    if (t >= place.count) continue;
    bf16_t* out = to.at(place.b, place.begin + t, place.h) + at.half * (D / 2) + at.q2;
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      float first = 0, second = 0;
      if (adds) load_pair(out + n * 8, first, second, aligned16);
      store_pair(out + n * 8, first + acc[0][n][e * 2], second + acc[0][n][e * 2 + 1], aligned16);
    }
  }
}

template <int D>
__device__ void query_gradient(const SsdGradients<bf16_t>& f, Shared<D>& shared, const ChunkPlace& place,
                               const WarpPlace& at) {
  constexpr int P = kPitch<D>;
  float acc[1][D / 16][4] = {};
  warp_gemm<1, D / 16, D / 16, false, false>(acc, shared.dy + at.rows * 16 * P, P, shared.state + at.half * (D / 2) * P,
                                             P);
  scale_and_dot<D>(acc, shared.q, shared.by_query, at, [&](int t) { return shared.decays.from_start[t]; });
  warp_gemm<1, D / 16, kChunk / 16, false, true>(acc, shared.dscores + at.rows * 16 * kPairs, kPairs,
                                                 shared.k + at.half * (D / 2), P);
  store_rows<D>(f.dq, acc, place, at, false, f.in.aligned16);
}

template <int D>
__device__ void key_gradient(const SsdGradients<bf16_t>& f, Shared<D>& shared, const ChunkPlace& place,
                             const WarpPlace& at, bool outputs) {
  constexpr int P = kPitch<D>;
  float acc[1][D / 16][4] = {};
  warp_gemm<1, D / 16, D / 16, false, false>(acc, shared.v + at.rows * 16 * P, P,
                                             shared.adjoint + at.half * (D / 2) * P, P);
  scale_and_dot<D>(acc, shared.k, shared.by_key, at,
                   [&](int s) { return shared.decays.to_end[s] * shared.decays.dt[s]; });
  if (outputs) {
    warp_gemm<1, D / 16, kChunk / 16, true, true>(acc, shared.dscores + at.rows * 16, kPairs,
                                                  shared.q + at.half * (D / 2), P);
  }
  store_rows<D>(f.dk, acc, place, at, false, f.in.aligned16);
}

template <int D>
__device__ void value_gradient(const SsdGradients<bf16_t>& f, Shared<D>& shared, const ChunkPlace& place,
                               const WarpPlace& at, bool outputs) {
  constexpr int P = kPitch<D>;
  float acc[1][D / 16][4] = {};
  warp_gemm<1, D / 16, D / 16, false, true>(acc, shared.k + at.rows * 16 * P, P, shared.adjoint + at.half * (D / 2), P);
#pragma unroll
  for (int n = 0; n < D / 16; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) acc[0][n][e] *= shared.decays.to_end[at.token(e)];
  }
  if (outputs) {
    warp_gemm<1, D / 16, kChunk / 16, true, true>(acc, shared.scores + at.rows * 16, kPairs,
                                                  shared.dy + at.half * (D / 2), P);
  }
  scale_and_dot<D>(acc, shared.v, shared.by_value, at, [](int) { return 1.0f; });
  const float skip = !outputs || f.in.skip_H == nullptr ? 0.0f : widen(f.in.skip_H[place.h]);
#pragma unroll
  for (int n = 0; n < D / 16; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int s = at.token(e);
      float dy = 0;
      if (outputs) dy = widen(shared.dy[s * P + at.half * (D / 2) + n * 8 + at.q2 + e % 2]);
      acc[0][n][e] = acc[0][n][e] * shared.decays.dt[s] + skip * dy;
    }
  }
  store_rows<D>(f.dv, acc, place, at, f.accumulate_v, f.in.aligned16);
}

// ddt and dlog_a of token j, from the partial sums of the warps.
template <int D>
__device__ void decay_gradient(const SsdGradients<bf16_t>& f, const Shared<D>& shared, const ChunkPlace& place, int j,
                               bool outputs) {
  f.ddt.at(place.b, place.begin + j)[place.h] = shared.by_value[0][j] + shared.by_value[1][j];
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared.state_dot[w];
  sum *= shared.decays.total;
  for (int s = 0; s < j; ++s) sum += shared.by_key[0][s] + shared.by_key[1][s];
  if (outputs) {
    // The pairs (s < j <= t) are the pairs with query t >= j, minus those with key s >= j.
    for (int t = j; t < place.count; ++t) {
      float columns = 0;
#pragma unroll
      for (int rows = 0; rows < kChunk / 16; ++rows) columns += shared.column_pairs[rows][t];
      sum +=
          shared.by_query[0][t] + shared.by_query[1][t] + (shared.row_pairs[0][t] + shared.row_pairs[1][t] - columns);
    }
  }
  f.dlog_a.at(place.b, place.begin + j)[place.h] = sum;
}

template <int D>
__global__ void __launch_bounds__(kThreads) gradient_kernel(SsdGradients<bf16_t> f) {
  extern __shared__ __align__(16) char shared_bytes[];
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(shared_bytes);
  const ChunkPlace place(f.in, f.grid, f.first_head);
  const bool outputs = f.in.q.data != nullptr;
  if (outputs) {
    load_chunk<D, kThreads>(shared.q, f.in.q, place, f.in.aligned16);
    load_chunk<D, kThreads>(shared.dy, f.in.dy, place, f.in.aligned16);
  }
  load_chunk<D, kThreads>(shared.k, f.in.k, place, f.in.aligned16);
  load_chunk<D, kThreads>(shared.v, f.in.v, place, f.in.aligned16);
  load_state<D, kThreads>(shared.state, f.states, place, f.grid);
  load_state<D, kThreads>(shared.adjoint, f.adjoints, place, f.grid);
  cp_async_decays<kThreads>(shared.decays, decays_of(f.in, f.grid, place.head, place.chunk));
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const WarpPlace at;
  float product = 0;
  for (int i = threadIdx.x; i < D * D; i += kThreads) {
    const int e = i / D * kPitch<D> + i % D;
    product += widen(shared.state[e]) * widen(shared.adjoint[e]);
  }
  product = warp_sum(product);
  const float skip = outputs ? warp_sum(pairs_of_tokens(shared, at)) : 0.0f;
  if (at.lane == 0) shared.state_dot[at.warp] = product, shared.skip[at.warp] = skip;
  __syncthreads();
  if (outputs) query_gradient(f, shared, place, at);
  key_gradient(f, shared, place, at, outputs);
  value_gradient(f, shared, place, at, outputs);
  __syncthreads();
  if (threadIdx.x < place.count) decay_gradient(f, shared, place, static_cast<int>(threadIdx.x), outputs);
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared.skip[w];
    f.skip_partial[place.head * f.grid.chunks + place.chunk] = sum;
  }
}

}  // namespace

template <int D>
void ssd_tile_gradients(cudaStream_t stream, const SsdGradients<bf16_t>& f) {
  launch(stream, {f.grid.chunks, f.head_count}, kThreads, sizeof(Shared<D>), gradient_kernel<D>, f);
}

template void ssd_tile_gradients<64>(cudaStream_t, const SsdGradients<bf16_t>&);
template void ssd_tile_gradients<96>(cudaStream_t, const SsdGradients<bf16_t>&);
template void ssd_tile_gradients<128>(cudaStream_t, const SsdGradients<bf16_t>&);

}  // namespace tmamba::cuda
