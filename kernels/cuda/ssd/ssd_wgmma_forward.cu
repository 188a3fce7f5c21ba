// The SSM scan forward on Hopper: the chunk-state scan, and the fused scan, which also computes the chunks' outputs. A
// block has one or two state warpgroups, each of which holds 64 rows of the state (with D = 96 the second holds 32),
// and for outputs one more warpgroup. The last warp of the state warpgroups is also the producer warp. States are
// float32 in registers, GEMM operands bfloat16.
#include "kernels/cuda/ssd/ssd_wgmma.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kStages = 3;  // chunks of tokens in the pipeline

// The state warpgroups come first.
template <int D>
constexpr int kStateGroups = (D + 63) / 64;
template <int D, bool kOutputs>
constexpr int kThreads = (kStateGroups<D> + (kOutputs ? 1 : 0)) * kWarpGroup;

struct Args {
  SsdStateScan<bf16_t> w;
  Cubes<bf16_t> output;
  CUtensorMap x, y, q;  // the scan adds x y^T: (k, v), or in reverse (q, dy); q: for outputs
};

template <int D, bool kOutputs>
struct Stage {
  alignas(kPanelAlign) bf16_t x[kChunk * D];
  alignas(kPanelAlign) bf16_t y[kChunk * D];
  alignas(kPanelAlign) bf16_t q[kOutputs ? kChunk * D : 1];
  ChunkDecays decays;
};

template <int D, bool kOutputs>
struct Shared {
  Stage<D, kOutputs> stage[kStages];
  alignas(kPanelAlign) bf16_t state[2][kOutputs ? D * D : 1];  // the state before a chunk, for its outputs
  Pipeline<kStages> chunks;
  Pipeline<2> states;
};

// --- Producer warp ---

// Loads the n-th chunk of a scan, if there is one.
template <int D, bool kOutputs>
__device__ void produce_chunk(const Args& args, Shared<D, kOutputs>& shared, const StateScanPlace<bf16_t>& place,
                              int64_t n) {
  if (n >= place.count) return;
  const SsdStateScan<bf16_t>& w = args.w;
  const Cubes<const bf16_t>&x = w.reverse ? w.in.q : w.in.k, &y = w.reverse ? w.in.dy : w.in.v;
  const bool adds = x.data != nullptr, aligned16 = w.in.aligned16;
  const PipelineState<kStages> state(n);
  Stage<D, kOutputs>& stage = shared.stage[state.stage];
  TransactionBarrier& full = shared.chunks.producer_barrier(state);
  const int64_t chunk = place.chunk(n), begin = chunk * kChunk;
  shared.chunks.producer_acquire(state);
  if (adds && !aligned16) {
    copy_tokens<D, kWarp>(stage.x, x, place.b, place.h, begin, w.in.T - begin);
    copy_tokens<D, kWarp>(stage.y, y, place.b, place.h, begin, w.in.T - begin);
    if (kOutputs) copy_tokens<D, kWarp>(stage.q, w.in.q, place.b, place.h, begin, w.in.T - begin);
    fence_view_async_shared();
  }
  __syncwarp();
  if (threadIdx.x % kWarp == 0) {
    constexpr int kTiles = kOutputs ? 3 : 2;
    full.expect_tx(static_cast<int>(sizeof(ChunkDecays)) + (adds && aligned16 ? kTiles * kChunk * D * 2 : 0));
    if (adds && aligned16) {
      tma_load_tokens<D>(stage.x, args.x, full, place.b, place.h, begin);
      tma_load_tokens<D>(stage.y, args.y, full, place.b, place.h, begin);
      if (kOutputs) tma_load_tokens<D>(stage.q, args.q, full, place.b, place.h, begin);
    }
    bulk_load(&stage.decays, decays_of(w.in, w.grid, place.head, chunk), sizeof(ChunkDecays), full);
    full.arrive();
  }
  __syncwarp();
}

// --- State warpgroups ---

// The warp's 16 rows of x^T from `row` on, for all tokens, as fragments of operand a, multiplied by the tokens' weights
// and rounded once.
template <int D>
__device__ void weigh_tokens(uint32_t (&a)[kChunk / 16][4], const bf16_t* x, int row, const ChunkDecays& decays,
                             bool reverse) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int k = 0; k < kChunk / 16; ++k) {
    ldmatrix_transposed(a[k], x + panel_index<kChunk>(k * 16 + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8));
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // tokens 2q, 2q + 1, then those eight later
      const int s = k * 16 + i * 8 + lane % 4 * 2;
      const float2 decay = *reinterpret_cast<const float2*>((reverse ? decays.from_start : decays.to_end) + s);
      float2 dt{1, 1};
      if (!reverse) dt = *reinterpret_cast<const float2*>(decays.dt + s);
      const float first = decay.x * dt.x, second = decay.y * dt.y;
#pragma unroll
      for (int e = 2 * i; e < 2 * i + 2; ++e) {
        a[k][e] = pack_bf16(low_bf16(a[k][e]) * first, high_bf16(a[k][e]) * second);
      }
    }
  }
}

// Calls f(row, column, first, second) for each pair of neighbouring state elements that the thread holds.
template <int D, class State, class F>
__device__ void for_each_pair(State& state, const F& f) {
  const int row = static_cast<int>(threadIdx.x) / kWarpGroup * 64 + accumulator_row(), column = accumulator_column();
  if (row >= D) return;  // whole warps
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      f(row + half * 8, column + n * 8, state[n][half * 2], state[n][half * 2 + 1]);
    }
  }
}

template <int D, bool kOutputs>
__device__ void scan_chunks(const Args& args, Shared<D, kOutputs>& shared, const StateScanPlace<bf16_t>& place,
                            float (&state)[D / 8][4], double& log_decay) {
  const SsdStateScan<bf16_t>& w = args.w;
  const bool adds = (w.reverse ? w.in.q : w.in.k).data != nullptr;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16,
            row = warp_row + static_cast<int>(threadIdx.x) % kWarp / 4;
  const bool produces = threadIdx.x / kWarp == kStateGroups<D> * 4 - 1;
  uint32_t a[kChunk / 16][4] = {};
  for (int64_t n = 0; n < place.count; ++n) {
    if (produces) produce_chunk(args, shared, place, n + kStages - 1);
    const PipelineState<kStages> at(n);
    const Stage<D, kOutputs>& stage = shared.stage[at.stage];
    if (kOutputs) {
      const PipelineState<2> slot(n);
      shared.states.producer_acquire(slot);
      bf16_t* out = shared.state[slot.stage];
      for_each_pair<D>(state, [&](int i, int c, float first, float second) {
        *reinterpret_cast<uint32_t*>(out + panel_index<D>(i, c)) = pack_bf16(first, second);
      });
      fence_view_async_shared();
      __syncwarp();
      if (threadIdx.x % kWarp == 0) shared.states.producer_barrier(slot).arrive();
    }
    if (w.chunk_states != nullptr && warp_row < D) {
      bf16_t* out = static_cast<bf16_t*>(w.chunk_states) +
                    ((place.head - w.first_head) * w.grid.chunks + place.chunk(n)) * D * D + row * D;
      store_row<0>(out, state, true), store_row<1>(out + 8 * D, state, true);
    }
    shared.chunks.consumer_wait(at);
    log_decay += stage.decays.log_total;
    scale_rows(state, stage.decays.total, stage.decays.total);
    if (adds) {
      if (warp_row < D) weigh_tokens<D>(a, stage.x, warp_row, stage.decays, w.reverse);
      warpgroup_arrive();
      warpgroup_gemm(state, a, SmemDescriptor<false, kChunk>(stage.y), true);
      warpgroup_commit_batch();
      warpgroup_wait<0>(state);
    }
    __syncwarp();
    shared.chunks.consumer_release(at);
  }
}

template <int D, bool kOutputs>
__device__ void scan_states(const Args& args, Shared<D, kOutputs>& shared, const StateScanPlace<bf16_t>& place) {
  const SsdStateScan<bf16_t>& w = args.w;
  const int64_t slot = place.head * w.grid.segments + place.segment;
  float state[D / 8][4] = {};
  double log_decay = 0;
  if (threadIdx.x / kWarp == kStateGroups<D> * 4 - 1) {
    for (int n = 0; n < kStages - 1; ++n) produce_chunk(args, shared, place, n);
  }
  const auto each = [&](const auto& f) { for_each_pair<D>(state, f); };
  load_entry_state<D>(w, slot, each);
  scan_chunks(args, shared, place, state, log_decay);
  store_exit_state<D>(w, place, slot, log_decay, each);
}

// --- Output warpgroup: y_t = sum_{s <= t} (q_t . k_s) exp(c_t - c_s) dt_s v_s + exp(c_t) S^T q_t + D v_t ---

template <int D>
__device__ void chunk_outputs(const Args& args, Shared<D, true>& shared, const StateScanPlace<bf16_t>& place) {
  const SsdInputs<bf16_t>& in = args.w.in;
  const float skip = in.skip_H == nullptr ? 0.0f : widen(in.skip_H[place.h]);
  const int row = accumulator_row();
  float score[kChunk / 8][4] = {}, y[D / 8][4] = {};
  uint32_t weights[kChunk / 16][4];
  for (int64_t n = 0; n < place.count; ++n) {
    const PipelineState<kStages> at(n);
    const PipelineState<2> slot(n);
    const Stage<D, true>& stage = shared.stage[at.stage];
    const SmemDescriptor<true, kChunk> q(stage.q);
    shared.chunks.consumer_wait(at);
    warpgroup_arrive();
    warpgroup_gemm<D / 16>(score, q, SmemDescriptor<true, kChunk>(stage.x), false);
    warpgroup_commit_batch();
    shared.states.consumer_wait(slot);
    warpgroup_arrive();
    warpgroup_gemm<D / 16>(y, q, SmemDescriptor<false, D>(shared.state[slot.stage]), false);
    warpgroup_commit_batch();
    warpgroup_wait<1>(score);
    decay_pairs(score, stage.decays, true, PairWeights::columns);
    to_fragments(weights, score);
    warpgroup_wait<0>(y);
    __syncwarp();
    shared.states.consumer_release(slot);
    scale_rows(y, stage.decays.from_start[row], stage.decays.from_start[row + 8]);
    warpgroup_arrive();
    warpgroup_gemm(y, weights, SmemDescriptor<false, kChunk>(stage.y), true);
    warpgroup_commit_batch();
    warpgroup_wait<0>(y);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        const int index = panel_index<kChunk>(row + half * 8, i * 8 + accumulator_column());
        const uint32_t v = *reinterpret_cast<const uint32_t*>(stage.y + index);
        y[i][half * 2] += skip * low_bf16(v), y[i][half * 2 + 1] += skip * high_bf16(v);
      }
    }
    __syncwarp();
    shared.chunks.consumer_release(at);
    const int64_t begin = place.chunk(n) * kChunk, left = in.T - begin;
    store_tokens(args.output, y, place.b, place.h, begin, left < kChunk ? static_cast<int>(left) : kChunk, 0, false,
                 in.aligned16);
  }
}

template <int D, bool kOutputs>
__global__ void __launch_bounds__(kThreads<D, kOutputs>, kOutputs ? 1 : 2)
    state_scan_kernel(const __grid_constant__ Args args) {
#if TMAMBA_HAS_WGMMA
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  Shared<D, kOutputs>& shared = *reinterpret_cast<Shared<D, kOutputs>*>(shared_bytes);
  if (threadIdx.x == 0) {
    shared.chunks.init(1, kThreads<D, kOutputs> / kWarp);
    shared.states.init(kStateGroups<D> * 4, 4);
    fence_barrier_init();
  }
  __syncthreads();
  const StateScanPlace<bf16_t> place(args.w);
  if (threadIdx.x < kStateGroups<D> * kWarpGroup) {
    scan_states(args, shared, place);
  } else if constexpr (kOutputs) {
    chunk_outputs(args, shared, place);
  }
#endif
}

template <int D, bool kOutputs>
void run(cudaStream_t stream, const SsdStateScan<bf16_t>& w, const Cubes<bf16_t>& y) {
  const SsdInputs<bf16_t>& in = w.in;
  const Args args{w, y, token_map<D>(in, w.reverse ? in.q : in.k), token_map<D>(in, w.reverse ? in.dy : in.v),
                  token_map<D>(in, in.q)};
  launch(stream, {w.segment_count, w.head_count}, kThreads<D, kOutputs>, sizeof(Shared<D, kOutputs>),
         state_scan_kernel<D, kOutputs>, args);
}

}  // namespace

void ssd_wgmma_state_scan(cudaStream_t stream, const SsdStateScan<bf16_t>& w) {
  dispatch_tile_width(w.in.D, [&]<int kD>() { run<kD, false>(stream, w, {}); });
}

void ssd_wgmma_fused_scan(cudaStream_t stream, const SsdStateScan<bf16_t>& w, const Cubes<bf16_t>& y) {
  dispatch_tile_width(w.in.D, [&]<int kD>() { run<kD, true>(stream, w, y); });
}

}  // namespace tmamba::cuda
