// Attention forward on Hopper (after FlashAttention-3). While the tensor cores multiply the probabilities of one tile
// of keys with its values, each warpgroup computes the probabilities of the next tile.
#include <limits>

#include "kernels/cuda/attention/attention_wgmma.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kKeys = 128, kStages = 2;

struct Args {
  AttentionForwardViews<bf16_t> f;
  BlockOrder order;
  CUtensorMap q, k, v;
};

template <int D>
struct Shared {
  alignas(kPanelAlign) bf16_t q[kBlockRows * D];
  alignas(kPanelAlign) bf16_t k[kStages][kKeys * D];
  alignas(kPanelAlign) bf16_t v[kStages][kKeys * D];
  TransactionBarrier q_full;
  Pipeline<kStages> k_pipeline, v_pipeline;
  __device__ void init_barriers(int arrivals) {
    q_full.init(arrivals);
    k_pipeline.init(arrivals, kConsumerWarps), v_pipeline.init(arrivals, kConsumerWarps);
  }
};

using Span = QuerySpan<kKeys>;

// For the thread's two rows: the maximum of the raw scores, and this thread's part of the sum.
struct Softmax {
  float max[2], sum[2];
};

template <int D>
__device__ void producer(const Args& args, Shared<D>& shared, const Span& span) {
  const bool aligned16 = args.f.size.aligned16;
  if (aligned16 && threadIdx.x != 0) return;
  const auto tile = [&]<int kRows>(bf16_t* to, const CUtensorMap& map, const Cubes<const bf16_t>& from,
                                   TransactionBarrier& full, int64_t row, int64_t end) {
    if (aligned16) full.expect_tx(kRows * D * 2);
    load_swizzled_tile<kRows, D>(to, map, from, full, span.place.b, span.place.h, row, end, aligned16);
    full.arrive();
  };
  tile.template operator()<kBlockRows>(shared.q, args.q, args.f.q, shared.q_full, span.first, span.last);
  for (int64_t j = 0; j < span.tiles; ++j) {
    const PipelineState<kStages> state(j);
    shared.k_pipeline.producer_acquire(state);
    tile.template operator()<kKeys>(shared.k[state.stage], args.k, args.f.k, shared.k_pipeline.producer_barrier(state),
                                    j * kKeys, span.key_end);
    shared.v_pipeline.producer_acquire(state);
    tile.template operator()<kKeys>(shared.v[state.stage], args.v, args.f.v, shared.v_pipeline.producer_barrier(state),
                                    j * kKeys, span.key_end);
  }
}

// Replaces scores by exp2(scale (score - maximum)). `keep` returns the factors by which earlier sums must be scaled.
// last: index of the last column that the thread's first row attends to.
[[maybe_unused]] __device__ inline void softmax_tile(float (&score)[kKeys / 8][4], Softmax& soft, float (&keep)[2],
                                                     float scale, int64_t last) {
  if (last < kKeys - 1) {
    const int limit = last < -16 ? -16 : static_cast<int>(last), column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (column + n * 8 + e % 2 > limit + e / 2 * 8) score[n][e] = -std::numeric_limits<float>::infinity();
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float max = soft.max[half];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) max = fmaxf(max, fmaxf(score[n][half * 2], score[n][half * 2 + 1]));
    max = fmaxf(max, __shfl_xor_sync(0xFFFFFFFFu, max, 1));
    max = fmaxf(max, __shfl_xor_sync(0xFFFFFFFFu, max, 2));
    // Every query attends to key 0, so the maximum is finite from the first tile on.
    const float offset = -max * scale;
    keep[half] = exp2_approx(soft.max[half] * scale + offset);
    soft.max[half] = max;
    float sum[2] = {};
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = score[n][half * 2 + e];
        x = exp2_approx(x * scale + offset);
        sum[e] += x;
      }
    }
    soft.sum[half] = soft.sum[half] * keep[half] + (sum[0] + sum[1]);
  }
}

template <int D>
__device__ void store_output(const AttentionForwardViews<bf16_t>& f, const float (&out)[D / 8][4], const Softmax& soft,
                             const BlockPlace& place, int64_t first_query, float scale) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t t = first_query + half * 8;
    const float sum = warp_sum<4>(soft.sum[half]), inverse = 1 / sum;
    if (t >= f.size.T) continue;
    bf16_t* o = f.o.at(place.b, t, place.h) + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      store_pair(o + n * 8, out[n][half * 2] * inverse, out[n][half * 2 + 1] * inverse, f.size.aligned16);
    }
    if (lane % 4 == 0) f.lse.at(place.b, t)[place.h] = (soft.max[half] * scale + log2f(sum)) * kLn2;
  }
}

template <int D>
__device__ void consumer(const Args& args, Shared<D>& shared, const Span& span) {
  const AttentionSizes& s = args.f.size;
  const int group = threadIdx.x / kWarpGroup - 1, warp = threadIdx.x % kWarpGroup / kWarp;
  const float scale = static_cast<float>(s.scale) * kLog2e;
  const int64_t query =
      span.first + group * kGroupRows + warp * 16 + threadIdx.x % kWarp / 4;  // of the thread's first row
  const SmemDescriptor<true, kBlockRows> q(shared.q, group * kGroupRows);
  float out[D / 8][4] = {}, score[kKeys / 8][4] = {}, keep[2];
  uint32_t p[kKeys / 16][4];
  Softmax soft{{-std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}, {}};

  const auto start_scores = [&](int64_t j) {
    const PipelineState<kStages> state(j);
    shared.k_pipeline.consumer_wait(state);
    warpgroup_arrive();
    warpgroup_gemm<D / 16>(score, q, SmemDescriptor<true, kKeys>(shared.k[state.stage]), false);
    warpgroup_commit_batch();
  };
  const auto start_output = [&](int64_t j) {
    const PipelineState<kStages> state(j);
    shared.v_pipeline.consumer_wait(state);
    warpgroup_arrive();
    warpgroup_gemm(out, p, SmemDescriptor<false, kKeys>(shared.v[state.stage]), true);
    warpgroup_commit_batch();
  };
  shared.q_full.wait(0);
  start_scores(0);
  warpgroup_wait<0>(score);
  shared.k_pipeline.consumer_release(PipelineState<kStages>(0));
  softmax_tile(score, soft, keep, scale, s.q_begin + query);
  to_fragments(p, score);
  for (int64_t j = 1; j < span.tiles; ++j) {
    start_scores(j);
    start_output(j - 1);
    warpgroup_wait<1>(score);
    shared.k_pipeline.consumer_release(PipelineState<kStages>(j));
    softmax_tile(score, soft, keep, scale, s.q_begin + query - j * kKeys);
    warpgroup_wait<0>(out);
    shared.v_pipeline.consumer_release(PipelineState<kStages>(j - 1));
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) out[n][e] *= keep[e / 2];
    }
    to_fragments(p, score);
  }
  start_output(span.tiles - 1);
  warpgroup_wait<0>(out);
  store_output<D>(args.f, out, soft, span.place, query, scale);
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads, 1) forward_kernel(const __grid_constant__ Args args) {
#if TMAMBA_HAS_WGMMA
  run_warp_specialized<Shared<D>, Span>(
      args, [&](Shared<D>& shared, const Span& span) { producer(args, shared, span); },
      [&](Shared<D>& shared, const Span& span) { consumer(args, shared, span); });
#endif
}

template <int D>
void run(cudaStream_t stream, const AttentionForwardViews<bf16_t>& f) {
  const AttentionSizes& s = f.size;
  Args args{f, block_order(s, s.T, s.keys()), {}, {}, {}};
  if (s.aligned16) {
    args.q = make_tensor_map(f.q, s.B, s.T, s.H, D, kBlockRows);
    args.k = make_tensor_map(f.k, s.B, s.keys(), s.H, D, kKeys);
    args.v = make_tensor_map(f.v, s.B, s.keys(), s.H, D, kKeys);
  }
  launch(stream, {args.order.blocks()}, kAttentionThreads, sizeof(Shared<D>), forward_kernel<D>, args);
}

}  // namespace

void attention_forward_wgmma(cudaStream_t stream, const AttentionForwardViews<bf16_t>& f) {
  dispatch_tile_width(f.size.D, [&]<int kD>() { run<kD>(stream, f); });
}

}  // namespace tmamba::cuda
