// Attention backward on Hopper: the gradients of keys and values.
#include "kernels/cuda/attention/attention_wgmma_backward.cuh"

namespace tmamba::cuda {

namespace {

template <int D>
struct KeyShared {
  alignas(kPanelAlign) bf16_t k[kBlockRows * D];
  alignas(kPanelAlign) bf16_t v[kBlockRows * D];
  alignas(kPanelAlign) bf16_t q[kBackwardStages][kQueryTile * D];
  alignas(kPanelAlign) bf16_t d_o[kBackwardStages][kQueryTile * D];
  alignas(16) float lse[kBackwardStages][kQueryTile], delta[kBackwardStages][kQueryTile];
  TransactionBarrier own_full;
  Pipeline<kBackwardStages> pipeline;
  __device__ void init_barriers(int arrivals) { own_full.init(arrivals), pipeline.init(arrivals, kConsumerWarps); }
};

// A block's keys [first, key_end) and the queries from `begin` on that attend to them.
struct KeySpan {
  BlockPlace place;
  int64_t first, key_end, begin, tiles;
  __device__ explicit KeySpan(const BackwardArgs& args) : place(args.order, args.f.size.H) {
    const AttentionSizes& s = args.f.size;
    first = place.tile * kBlockRows, key_end = s.q_begin + s.T;
    begin = first > s.q_begin ? (first - s.q_begin) / kQueryTile * kQueryTile : 0;
    tiles = (s.T - begin + kQueryTile - 1) / kQueryTile;
  }
};

template <int D>
__device__ void producer(const BackwardArgs& args, KeyShared<D>& shared, const KeySpan& span) {
  const AttentionBackwardViews<bf16_t>& f = args.f;
  const bool aligned16 = f.size.aligned16, first = threadIdx.x == 0;
  if (aligned16 && !first) return;
  const int64_t b = span.place.b, h = span.place.h;
  if (aligned16) shared.own_full.expect_tx(2 * kBlockRows * D * 2);
  load_swizzled_tile<kBlockRows, D>(shared.k, args.k, f.k, shared.own_full, b, h, span.first, span.key_end, aligned16);
  load_swizzled_tile<kBlockRows, D>(shared.v, args.v, f.v, shared.own_full, b, h, span.first, span.key_end, aligned16);
  shared.own_full.arrive();
  for (int64_t j = 0; j < span.tiles; ++j) {
    const PipelineState<kBackwardStages> state(j);
    TransactionBarrier& full = shared.pipeline.producer_barrier(state);
    const int64_t query = span.begin + j * kQueryTile, terms = span.place.bh * args.pitch + query;
    shared.pipeline.producer_acquire(state);
    if (first) {
      constexpr int kTermBytes = kQueryTile * 4;
      full.expect_tx(2 * kTermBytes + (aligned16 ? 2 * kQueryTile * D * 2 : 0));
      bulk_load(shared.lse[state.stage], args.lse + terms, kTermBytes, full);
      bulk_load(shared.delta[state.stage], args.delta + terms, kTermBytes, full);
    }
    load_swizzled_tile<kQueryTile, D>(shared.q[state.stage], args.q, f.q, full, b, h, query, f.size.T, aligned16);
    load_swizzled_tile<kQueryTile, D>(shared.d_o[state.stage], args.d_o, f.d_o, full, b, h, query, f.size.T, aligned16);
    full.arrive();
  }
}

// Adds the thread's two rows of a gradient to a tensor.
template <int D>
__device__ void add_rows(const Cubes<bf16_t>& to, const float (&acc)[D / 8][4], const KeySpan& span, float scale,
                         bool aligned16) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = span.first + first_row() + half * 8;
    if (row >= span.key_end) continue;
    bf16_t* out = to.at(span.place.b, row, span.place.h) + threadIdx.x % 4 * 2;
    add_accumulator_row(out, acc, half, scale, aligned16);
  }
}

template <int D>
__device__ void consumer(const BackwardArgs& args, KeyShared<D>& shared, const KeySpan& span) {
  constexpr int kN = kQueryTile / 8;
  const AttentionSizes& s = args.f.size;
  const int group_row = (static_cast<int>(threadIdx.x) / kWarpGroup - 1) * kGroupRows;
  const float scale = static_cast<float>(s.scale) * kLog2e;
  const SmemDescriptor<true, kBlockRows> k(shared.k, group_row), v(shared.v, group_row);
  // Rows are keys and columns queries, so p^T and ds^T are in the layout of operand a for dv and dk.
  float dk[D / 8][4] = {}, dv[D / 8][4] = {}, p[kN][4] = {}, ds[kN][4] = {};
  uint32_t p_rounded[kN / 2][4], ds_rounded[kN / 2][4];
  const int64_t hidden =
      span.first + first_row() - s.q_begin - span.begin;  // queries that do not attend to the first row
  const auto columns = [](const float(&terms)[kBackwardStages][kQueryTile], int64_t j, int n, int e) {
    return terms[PipelineState<kBackwardStages>(j).stage][n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2];
  };
  const auto scores = [&](int64_t j) {
    start_scores<D, kQueryTile>(p, ds, k, v, shared.pipeline, shared.q, shared.d_o, j);
  };
  const auto start_gradients = [&](int64_t j) {
    const int stage = PipelineState<kBackwardStages>(j).stage;
    warpgroup_arrive();
    warpgroup_gemm(dv, p_rounded, SmemDescriptor<false, kQueryTile>(shared.d_o[stage]), true);
    warpgroup_gemm(dk, ds_rounded, SmemDescriptor<false, kQueryTile>(shared.q[stage]), true);
    warpgroup_commit_batch();
  };
  const auto make_p = [&]<int kPending>(int64_t j) {
    warpgroup_wait<kPending>(p);
    const int64_t left = hidden - j * kQueryTile;
    const int limit = left > kQueryTile ? kQueryTile : static_cast<int>(left);
    probabilities(
        p, scale, left > -8, [&](int n, int e) { return columns(shared.lse, j, n, e); },
        [&](int column, int half) { return column < limit + half * 8; });
  };
  const auto make_ds = [&]<int kPending>(int64_t j) {
    warpgroup_wait<kPending>(ds);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - columns(shared.delta, j, n, e));
    }
  };
  const auto round = [&] { to_fragments(p_rounded, p), to_fragments(ds_rounded, ds); };
  const auto end_gradients = [&](int64_t j) {
    warpgroup_wait<0>(dk, dv);
    shared.pipeline.consumer_release(PipelineState<kBackwardStages>(j));
  };
  shared.own_full.wait(0);
  run_tiles<D <= 96>(span.tiles, scores, make_p, make_ds, round, start_gradients, end_gradients);
  add_rows<D>(args.f.dk, dk, span, static_cast<float>(s.scale), s.aligned16);
  add_rows<D>(args.f.dv, dv, span, 1.0f, s.aligned16);
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads, 1) key_gradient_kernel(const __grid_constant__ BackwardArgs args) {
#if TMAMBA_HAS_WGMMA
  run_warp_specialized<KeyShared<D>, KeySpan>(
      args, [&](KeyShared<D>& shared, const KeySpan& span) { producer(args, shared, span); },
      [&](KeyShared<D>& shared, const KeySpan& span) { consumer(args, shared, span); });
#endif
}

}  // namespace

template <int D>
void wgmma_key_gradient(cudaStream_t stream, BackwardArgs args) {
  const AttentionSizes& s = args.f.size;
  args.order = block_order(s, s.keys(), s.T);
  make_maps(args, kQueryTile, kBlockRows);
  launch(stream, {args.order.blocks()}, kAttentionThreads, sizeof(KeyShared<D>), key_gradient_kernel<D>, args);
}

template void wgmma_key_gradient<64>(cudaStream_t, BackwardArgs);
template void wgmma_key_gradient<96>(cudaStream_t, BackwardArgs);
template void wgmma_key_gradient<128>(cudaStream_t, BackwardArgs);

}  // namespace tmamba::cuda
