// Attention backward on Hopper: the gradient of queries.
#include <limits>

#include "kernels/cuda/attention/attention_wgmma_backward.cuh"

namespace tmamba::cuda {

namespace {

template <int D>
constexpr int kKeys = D == 64   ? 128
                      : D == 96 ? 96
                                : 64;  // per tile

template <int D>
struct QueryShared {
  alignas(kPanelAlign) bf16_t q[kBlockRows * D];
  alignas(kPanelAlign) bf16_t d_o[kBlockRows * D];
  alignas(kPanelAlign) bf16_t k[kBackwardStages][kKeys<D> * D];
  alignas(kPanelAlign) bf16_t v[kBackwardStages][kKeys<D> * D];
  TransactionBarrier own_full;
  Pipeline<kBackwardStages> pipeline;
  __device__ void init_barriers(int arrivals) { own_full.init(arrivals), pipeline.init(arrivals, kConsumerWarps); }
};

template <int D>
using Span = QuerySpan<kKeys<D>>;

template <int D>
__device__ void producer(const BackwardArgs& args, QueryShared<D>& shared, const Span<D>& span) {
  const AttentionBackwardViews<bf16_t>& f = args.f;
  const bool aligned16 = f.size.aligned16;
  if (aligned16 && threadIdx.x != 0) return;
  const int64_t b = span.place.b, h = span.place.h;
  if (aligned16) shared.own_full.expect_tx(2 * kBlockRows * D * 2);
  load_swizzled_tile<kBlockRows, D>(shared.q, args.q, f.q, shared.own_full, b, h, span.first, span.last, aligned16);
  load_swizzled_tile<kBlockRows, D>(shared.d_o, args.d_o, f.d_o, shared.own_full, b, h, span.first, span.last,
                                    aligned16);
  shared.own_full.arrive();
  for (int64_t j = 0; j < span.tiles; ++j) {
    const PipelineState<kBackwardStages> state(j);
    TransactionBarrier& full = shared.pipeline.producer_barrier(state);
    shared.pipeline.producer_acquire(state);
    if (aligned16) full.expect_tx(2 * kKeys<D> * D * 2);
    load_swizzled_tile<kKeys<D>, D>(shared.k[state.stage], args.k, f.k, full, b, h, j * kKeys<D>, span.key_end,
                                    aligned16);
    load_swizzled_tile<kKeys<D>, D>(shared.v[state.stage], args.v, f.v, full, b, h, j * kKeys<D>, span.key_end,
                                    aligned16);
    full.arrive();
  }
}

template <int D>
__device__ void consumer(const BackwardArgs& args, QueryShared<D>& shared, const Span<D>& span) {
  constexpr int kN = kKeys<D> / 8;
  const AttentionSizes& s = args.f.size;
  const int group_row = (static_cast<int>(threadIdx.x) / kWarpGroup - 1) * kGroupRows;
  const float scale = static_cast<float>(s.scale) * kLog2e, out_scale = static_cast<float>(s.scale);
  const SmemDescriptor<true, kBlockRows> q(shared.q, group_row), d_o(shared.d_o, group_row);
  const int64_t query = span.first + first_row();
  float dq[D / 8][4] = {}, p[kN][4] = {}, ds[kN][4] = {}, lse[2], delta[2];
  uint32_t ds_rounded[kN / 2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t t = query + half * 8, place = span.place.bh * args.pitch + t;
    lse[half] = t < s.T ? args.lse[place] : std::numeric_limits<float>::infinity();
    delta[half] = t < s.T ? args.delta[place] : 0.0f;
  }
  const auto scores = [&](int64_t j) {
    start_scores<D, kKeys<D>>(p, ds, q, d_o, shared.pipeline, shared.k, shared.v, j);
  };
  const auto start_gradients = [&](int64_t j) {
    warpgroup_arrive();
    warpgroup_gemm(dq, ds_rounded, SmemDescriptor<false, kKeys<D>>(shared.k[PipelineState<kBackwardStages>(j).stage]),
                   true);
    warpgroup_commit_batch();
  };
  const auto make_p = [&]<int kPending>(int64_t j) {
    warpgroup_wait<kPending>(p);
    const int64_t last = s.q_begin + query - j * kKeys<D>;  // the last column that the thread's first row attends to
    const int limit = last < -16 ? -16 : static_cast<int>(last < kKeys<D> ? last : kKeys<D>);
    probabilities(
        p, scale, last < kKeys<D> - 1, [&](int, int e) { return lse[e / 2]; },
        [&](int column, int half) { return column > limit + half * 8; });
  };
  const auto make_ds = [&]<int kPending>(int64_t) {
    warpgroup_wait<kPending>(ds);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - delta[e / 2]);
    }
  };
  const auto round = [&] { to_fragments(ds_rounded, ds); };
  const auto end_gradients = [&](int64_t j) {
    warpgroup_wait<0>(dq);
    shared.pipeline.consumer_release(PipelineState<kBackwardStages>(j));
  };
  shared.own_full.wait(0);
  run_tiles<true>(span.tiles, scores, make_p, make_ds, round, start_gradients, end_gradients);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t t = query + half * 8;
    if (t >= s.T) continue;
    bf16_t* out = args.f.dq.at(span.place.b, t, span.place.h) + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      store_pair(out + n * 8, dq[n][half * 2] * out_scale, dq[n][half * 2 + 1] * out_scale, s.aligned16);
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    query_gradient_kernel(const __grid_constant__ BackwardArgs args) {
#if TMAMBA_HAS_WGMMA
  run_warp_specialized<QueryShared<D>, Span<D>>(
      args, [&](QueryShared<D>& shared, const Span<D>& span) { producer(args, shared, span); },
      [&](QueryShared<D>& shared, const Span<D>& span) { consumer(args, shared, span); });
#endif
}

}  // namespace

template <int D>
void wgmma_query_gradient(cudaStream_t stream, BackwardArgs args) {
  const AttentionSizes& s = args.f.size;
  args.order = block_order(s, s.T, s.keys());
  make_maps(args, kBlockRows, kKeys<D>);
  launch(stream, {args.order.blocks()}, kAttentionThreads, sizeof(QueryShared<D>), query_gradient_kernel<D>, args);
}

template void wgmma_query_gradient<64>(cudaStream_t, BackwardArgs);
template void wgmma_query_gradient<96>(cudaStream_t, BackwardArgs);
template void wgmma_query_gradient<128>(cudaStream_t, BackwardArgs);

}  // namespace tmamba::cuda
