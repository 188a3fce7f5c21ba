// Attention backward, portable, without atomics. Blocks of one kernel own keys and iterate over the queries that attend
// to them (dk, dv); blocks of the other own queries and iterate over their keys (dq). Both recompute the probabilities
// from lse.
//   p = exp(q . k scale - lse);  dp = do . v;  ds = p (dp - do . o)
//   dv = p^T do;  dk = scale ds^T q;  dq = scale ds k
#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/common/mma.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kOwn = kWarps * 16;  // rows that a block owns, 16 to a warp
constexpr int kOwnTile = 16;

// Rows of the other side per tile.
template <int D>
constexpr int kOther = D == 128 ? 32 : 64;

// Turns scores and dp of one warp's tile into p and ds. visible(row, col): whether an element of the thread's fragment
// is not masked.
template <int kN, class RowValue, class ColValue, class Visible>
__device__ void gradient_tile(float (&score)[1][kN][4], float (&dp)[1][kN][4], float scale, const RowValue& lse,
                              const ColValue& delta, const Visible& visible) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = e / 2 * 8, col = n * 8 + e % 2;
      float& p = score[0][n][e];
      p = visible(row, col) ? exp2_approx(p * scale - lse(row, col)) : 0.0f;
      dp[0][n][e] = p * (dp[0][n][e] - delta(row, col));
    }
  }
}

template <int D>
struct KeyShared {
  bf16_t k[kOwn * kPitch<D>], v[kOwn * kPitch<D>];
  bf16_t q[2][kOther<D> * kPitch<D>], d_o[2][kOther<D> * kPitch<D>];
  float lse[2][kOther<D>], delta[2][kOther<D>];
};

// Adds 16 rows of a gradient, held as accumulators, to a tensor.
template <int D>
__device__ void add_rows(const Cubes<bf16_t>& to, const float (&acc)[1][D / 8][4], int64_t b, int64_t h, int64_t row,
                         int64_t end, float scale, bool aligned16) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row + lane / 4 + half * 8;
    if (r >= end) continue;
    bf16_t* out = to.at(b, r, h) + lane % 4 * 2;
    add_accumulator_row(out, acc[0], half, scale, aligned16);
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2) key_gradient_kernel(AttentionBackwardViews<bf16_t> f) {
  extern __shared__ __align__(16) char shared_bytes[];
  KeyShared<D>& shared = *reinterpret_cast<KeyShared<D>*>(shared_bytes);
  constexpr int kN = kOther<D> / 8;
  const AttentionSizes& s = f.size;
  const int64_t b = blockIdx.x / s.H, h = blockIdx.x % s.H;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kOwn, key_end = s.q_begin + s.T;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const float scale = static_cast<float>(s.scale) * kLog2e;
  // The first query that attends to the first key, rounded down to a tile.
  const int64_t begin = first > s.q_begin ? (first - s.q_begin) / kOther<D> * kOther<D> : 0;
  const int64_t tiles = (s.T - begin + kOther<D> - 1) / kOther<D>;

  const auto load_queries = [&](int stage, int64_t j) {
    if (j < tiles) {
      const int64_t query = begin + j * kOther<D>, count = s.T - query;
      load_tile<kOther<D>, D, kThreads>(shared.q[stage], f.q.at(b, query, h), f.q.t, count, s.aligned16);
      load_tile<kOther<D>, D, kThreads>(shared.d_o[stage], f.d_o.at(b, query, h), f.d_o.t, count, s.aligned16);
      for (int i = threadIdx.x; i < kOther<D>; i += kThreads) {
        shared.lse[stage][i] = i < count ? f.lse.at(b, query + i)[h] * kLog2e : 0.0f;
        shared.delta[stage][i] = i < count ? f.delta_BHT[(b * s.H + h) * s.T + query + i] : 0.0f;
      }
    }
    cp_async_commit();
  };
  load_tile<kOwn, D, kThreads>(shared.k, f.k.at(b, first, h), f.k.t, key_end - first, s.aligned16);
  load_tile<kOwn, D, kThreads>(shared.v, f.v.at(b, first, h), f.v.t, key_end - first, s.aligned16);
  load_queries(0, 0);

  float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
  for (int64_t j = 0; j < tiles; ++j) {
    const int stage = j % 2;
    cp_async_wait<0>();
    __syncthreads();
    load_queries(1 - stage, j + 1);
    // Rows are keys and columns queries, so p^T and ds^T are in the layout of operand a for dv and dk.
    float p[1][kN][4] = {}, ds[1][kN][4] = {};
    const int own = warp * kOwnTile * kPitch<D>;
    warp_gemm<1, kN, D / 16, false, false>(p, shared.k + own, kPitch<D>, shared.q[stage], kPitch<D>);
    warp_gemm<1, kN, D / 16, false, false>(ds, shared.v + own, kPitch<D>, shared.d_o[stage], kPitch<D>);
    const int64_t query = begin + j * kOther<D> + lane % 4 * 2, key = first + warp * kOwnTile + lane / 4;
    const float *lse = shared.lse[stage] + lane % 4 * 2, *delta = shared.delta[stage] + lane % 4 * 2;
    gradient_tile(
        p, ds, scale, [&](int, int col) { return lse[col]; }, [&](int, int col) { return delta[col]; },
        [&](int row, int col) { return query + col < s.T && key + row <= s.q_begin + query + col; });
    uint32_t frag[1][kN / 2][4];
    to_fragments(frag, p);
    warp_gemm<1, D / 8, kN / 2, true>(dv, frag, shared.d_o[stage], kPitch<D>);
    to_fragments(frag, ds);
    warp_gemm<1, D / 8, kN / 2, true>(dk, frag, shared.q[stage], kPitch<D>);
  }
  const int64_t key = first + warp * kOwnTile;
  add_rows<D>(f.dk, dk, b, h, key, key_end, static_cast<float>(s.scale), s.aligned16);
  add_rows<D>(f.dv, dv, b, h, key, key_end, 1.0f, s.aligned16);
}

template <int D>
struct QueryShared {
  bf16_t q[kOwn * kPitch<D>], d_o[kOwn * kPitch<D>];
  bf16_t k[2][kOther<D> * kPitch<D>], v[2][kOther<D> * kPitch<D>];
};

template <int D>
__global__ void __launch_bounds__(kThreads, 2) query_gradient_kernel(AttentionBackwardViews<bf16_t> f) {
  extern __shared__ __align__(16) char shared_bytes[];
  QueryShared<D>& shared = *reinterpret_cast<QueryShared<D>*>(shared_bytes);
  constexpr int kN = kOther<D> / 8;
  const AttentionSizes& s = f.size;
  const int64_t b = blockIdx.x / s.H, h = blockIdx.x % s.H;
  const int64_t first = (gridDim.y - 1 - blockIdx.y) * kOwn;
  const int64_t last = first + kOwn < s.T ? first + kOwn : s.T, key_end = s.q_begin + last;
  const int64_t tiles = (key_end + kOther<D> - 1) / kOther<D>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const float scale = static_cast<float>(s.scale) * kLog2e;

  const auto load_keys = [&](int stage, int64_t j) {
    if (j < tiles) {
      const int64_t key = j * kOther<D>;
      load_tile<kOther<D>, D, kThreads>(shared.k[stage], f.k.at(b, key, h), f.k.t, key_end - key, s.aligned16);
      load_tile<kOther<D>, D, kThreads>(shared.v[stage], f.v.at(b, key, h), f.v.t, key_end - key, s.aligned16);
    }
    cp_async_commit();
  };
  load_tile<kOwn, D, kThreads>(shared.q, f.q.at(b, first, h), f.q.t, last - first, s.aligned16);
  load_tile<kOwn, D, kThreads>(shared.d_o, f.d_o.at(b, first, h), f.d_o.t, last - first, s.aligned16);
  load_keys(0, 0);

  const int64_t query = first + warp * kOwnTile + lane / 4;
  float lse[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t t = query + half * 8;
    lse[half] = t < s.T ? f.lse.at(b, t)[h] * kLog2e : 0.0f;
    delta[half] = t < s.T ? f.delta_BHT[(b * s.H + h) * s.T + t] : 0.0f;
  }
  float dq[1][D / 8][4] = {};
  for (int64_t j = 0; j < tiles; ++j) {
    const int stage = j % 2;
    cp_async_wait<0>();
    __syncthreads();
    load_keys(1 - stage, j + 1);
    float p[1][kN][4] = {}, ds[1][kN][4] = {};
    const int own = warp * kOwnTile * kPitch<D>;
    warp_gemm<1, kN, D / 16, false, false>(p, shared.q + own, kPitch<D>, shared.k[stage], kPitch<D>);
    warp_gemm<1, kN, D / 16, false, false>(ds, shared.d_o + own, kPitch<D>, shared.v[stage], kPitch<D>);
    const int64_t key = j * kOther<D> + lane % 4 * 2;
    gradient_tile(
        p, ds, scale, [&](int row, int) { return lse[row / 8]; }, [&](int row, int) { return delta[row / 8]; },
        [&](int row, int col) { return query + row < s.T && key + col <= s.q_begin + query + row; });
    uint32_t frag[1][kN / 2][4];
    to_fragments(frag, ds);
    warp_gemm<1, D / 8, kN / 2, true>(dq, frag, shared.k[stage], kPitch<D>);
  }
  const float out_scale = static_cast<float>(s.scale);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t t = query + half * 8;
    if (t >= s.T) continue;
    bf16_t* out = f.dq.at(b, t, h) + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      store_pair(out + n * 8, dq[0][n][half * 2] * out_scale, dq[0][n][half * 2 + 1] * out_scale, s.aligned16);
    }
  }
}

template <int D>
void run(cudaStream_t stream, const AttentionBackwardViews<bf16_t>& f) {
  const int64_t heads = f.size.B * f.size.H;
  launch(stream, {heads, ceil_div(f.size.keys(), kOwn)}, kThreads, sizeof(KeyShared<D>), key_gradient_kernel<D>, f);
  launch(stream, {heads, ceil_div(f.size.T, kOwn)}, kThreads, sizeof(QueryShared<D>), query_gradient_kernel<D>, f);
}

}  // namespace

void attention_backward_tiles(cudaStream_t stream, const AttentionBackwardViews<bf16_t>& f) {
  dispatch_tile_width(f.size.D, [&]<int kD>() { run<kD>(stream, f); });
}

}  // namespace tmamba::cuda
