// Attention forward, portable (after FlashAttention-2): a block of four warps owns kQueries queries of one head and
// iterates over the tiles of keys they attend to; each warp keeps maximum, sum and output of its 32 queries in
// registers.
#include <limits>

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/common/mma.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kM = 2;  // tiles of 16 queries per warp
constexpr int kQueries = kWarps * kM * 16;

template <int D>
constexpr int kKeys = D == 128 ? 32 : 64;

template <int D>
struct Shared {
  bf16_t q[kQueries * kPitch<D>];
  bf16_t k[2][kKeys<D> * kPitch<D>];
  bf16_t v[2][kKeys<D> * kPitch<D>];
};

// For rows g and g + 8 of each of the warp's query tiles: the maximum (in base 2) and this thread's part of the sum.
struct Softmax {
  float max[kM][2], sum[kM][2];
};

// Replaces scores by exp2(score - maximum) and rescales the earlier output to the new maximum. `key` is the position of
// this thread's first column, `position` that of its first row.
template <int kN, int kOut>
__device__ void softmax_tile(float (&score)[kM][kN][4], float (&out)[kM][kOut][4], Softmax& soft, float scale,
                             bool masks, int64_t key, int64_t position) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = position + m * 16 + half * 8;
      float max = soft.max[m][half];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = score[m][n][half * 2 + e];
          x *= scale;
          if (masks && key + n * 8 + e > row) x = -std::numeric_limits<float>::infinity();
          max = fmaxf(max, x);
        }
      }
      max = fmaxf(max, __shfl_xor_sync(0xFFFFFFFFu, max, 1));
      max = fmaxf(max, __shfl_xor_sync(0xFFFFFFFFu, max, 2));
      // Every query attends to key 0, so the maximum is finite from the first tile on.
      const float keep = exp2_approx(soft.max[m][half] - max);
      soft.max[m][half] = max;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = score[m][n][half * 2 + e];
          x = exp2_approx(x - max);
          sum += x;
        }
      }
      soft.sum[m][half] = soft.sum[m][half] * keep + sum;
#pragma unroll
      for (int n = 0; n < kOut; ++n) out[m][n][half * 2] *= keep, out[m][n][half * 2 + 1] *= keep;
    }
  }
}

template <int D>
__device__ void store_output(const AttentionForwardViews<bf16_t>& f, const float (&out)[kM][D / 8][4],
                             const Softmax& soft, int64_t b, int64_t h, int64_t first_query) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t t = first_query + m * 16 + half * 8 + lane / 4;
      const float sum = warp_sum<4>(soft.sum[m][half]), inverse = 1 / sum;
      if (t >= f.size.T) continue;
      bf16_t* o = f.o.at(b, t, h) + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        store_pair(o + n * 8, out[m][n][half * 2] * inverse, out[m][n][half * 2 + 1] * inverse, f.size.aligned16);
      }
      if (lane % 4 == 0) f.lse.at(b, t)[h] = (soft.max[m][half] + log2f(sum)) * kLn2;
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(AttentionForwardViews<bf16_t> f) {
  extern __shared__ __align__(16) char shared_bytes[];
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(shared_bytes);
  constexpr int kN = kKeys<D> / 8;
  const AttentionSizes& s = f.size;
  const int64_t b = blockIdx.x / s.H, h = blockIdx.x % s.H;
  const int64_t first = (gridDim.y - 1 - blockIdx.y) * kQueries;  // blocks with the most keys start first
  const int64_t last = first + kQueries < s.T ? first + kQueries : s.T, key_end = s.q_begin + last;
  const int64_t tiles = (key_end + kKeys<D> - 1) / kKeys<D>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t warp_query = first + warp * kM * 16;
  const float scale = static_cast<float>(s.scale) * kLog2e;

  const auto load_keys = [&](bf16_t* tile, const Cubes<const bf16_t>& from, int64_t j) {
    if (j < tiles) {
      const int64_t begin = j * kKeys<D>;
      load_tile<kKeys<D>, D, kThreads>(tile, from.at(b, begin, h), from.t, key_end - begin, s.aligned16);
    }
    cp_async_commit();
  };
  load_tile<kQueries, D, kThreads>(shared.q, f.q.at(b, first, h), f.q.t, last - first, s.aligned16);
  load_keys(shared.k[0], f.k, 0);
  load_keys(shared.v[0], f.v, 0);

  float out[kM][D / 8][4] = {};
  Softmax soft;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    soft.max[m][0] = soft.max[m][1] = -std::numeric_limits<float>::infinity();
    soft.sum[m][0] = soft.sum[m][1] = 0;
  }
  for (int64_t j = 0; j < tiles; ++j) {
    const int stage = j % 2;
    cp_async_wait<1>();  // k of this tile has arrived; v may be in flight
    __syncthreads();
    load_keys(shared.k[1 - stage], f.k, j + 1);
    float score[kM][kN][4] = {};
    warp_gemm<kM, kN, D / 16, false, false>(score, shared.q + warp * kM * 16 * kPitch<D>, kPitch<D>, shared.k[stage],
                                            kPitch<D>);
    const int64_t key = j * kKeys<D>;
    softmax_tile(score, out, soft, scale, key + kKeys<D> - 1 > s.q_begin + warp_query, key + lane % 4 * 2,
                 s.q_begin + warp_query + lane / 4);
    uint32_t p[kM][kN / 2][4];
    to_fragments(p, score);
    cp_async_wait<1>();  // v of this tile has arrived; k of the next may be in flight
    __syncthreads();
    load_keys(shared.v[1 - stage], f.v, j + 1);
    warp_gemm<kM, D / 8, kN / 2, true>(out, p, shared.v[stage], kPitch<D>);
  }
  store_output<D>(f, out, soft, b, h, warp_query);
}

template <int D>
void run(cudaStream_t stream, const AttentionForwardViews<bf16_t>& f) {
  const Grid grid{f.size.B * f.size.H, ceil_div(f.size.T, kQueries)};
  launch(stream, grid, kThreads, sizeof(Shared<D>), forward_kernel<D>, f);
}

}  // namespace

void attention_forward_tiles(cudaStream_t stream, const AttentionForwardViews<bf16_t>& f) {
  dispatch_tile_width(f.size.D, [&]<int kD>() { run<kD>(stream, f); });
}

}  // namespace tmamba::cuda
