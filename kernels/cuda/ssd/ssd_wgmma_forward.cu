// The SSM scan on Hopper: the walk over states, with the outputs of its chunks where they are asked for. A block has up
// to two warpgroups that hold 64 rows of the state each (of the second, where D = 96, half are not there; its last warp
// has chunks fetched ahead) and one warpgroup that makes outputs. States in float32 registers, products of bfloat16.
#include "kernels/cuda/ssd/ssd_wgmma.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kStages = 3;  // chunks of tokens under way at once

// Warpgroups that hold the state come first.
template <int D>
constexpr int kStateGroups = (D + 63) / 64;
template <int D, bool kOutputs>
constexpr int kThreads = (kStateGroups<D> + (kOutputs ? 1 : 0)) * kWarpGroup;

struct Args {
  SsdWalk<bf16_t> w;
  Cubes<bf16_t> output;
  CUtensorMap x, y, q;  // the walk adds x y^T: k, v, or in reverse q, dy; q of the outputs
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
  alignas(kPanelAlign) bf16_t state[2][kOutputs ? D * D : 1];  // before a chunk, for the outputs
  Barrier full[kStages], empty[kStages], state_full[2], state_empty[2];
};

// Of the n-th chunk of a walk: its place in a ring of kSize, and the parity of that place's phase.
template <int kSize>
struct Turn {
  int at;
  uint32_t parity;
  __device__ explicit Turn(int64_t n) : at(static_cast<int>(n % kSize)), parity(static_cast<uint32_t>(n / kSize % 2)) {}
};

// All of a warp have done what the barrier waits for.
[[maybe_unused]] __device__ inline void arrive_warp(Barrier& barrier) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) barrier.arrive();
}

// --- Fetching: one warp has the n-th chunk of a walk fetched, if there is one
// ------------------------------------------------

template <int D, bool kOutputs>
__device__ void fetch_chunk(const Args& args, Shared<D, kOutputs>& shared, const WalkPlace<bf16_t>& place, int64_t n) {
  if (n >= place.count) return;
  const SsdWalk<bf16_t>& w = args.w;
  const Cubes<const bf16_t>&x = w.reverse ? w.in.q : w.in.k, &y = w.reverse ? w.in.dy : w.in.v;
  const bool adds = x.data != nullptr, wide = w.in.wide;
  const Turn<kStages> turn(n);
  Stage<D, kOutputs>& stage = shared.stage[turn.at];
  Barrier& full = shared.full[turn.at];
  const int64_t chunk = place.chunk(n), begin = chunk * kChunk;
  shared.empty[turn.at].wait(turn.parity ^ 1);
  if (adds && !wide) {
    copy_tokens<D, kWarp>(stage.x, x, place.b, place.h, begin, w.in.T - begin);
    copy_tokens<D, kWarp>(stage.y, y, place.b, place.h, begin, w.in.T - begin);
    if (kOutputs) copy_tokens<D, kWarp>(stage.q, w.in.q, place.b, place.h, begin, w.in.T - begin);
    publish_writes();
  }
  __syncwarp();
  if (threadIdx.x % kWarp == 0) {
    constexpr int kTiles = kOutputs ? 3 : 2;
    full.expect(static_cast<int>(sizeof(ChunkDecays)) + (adds && wide ? kTiles * kChunk * D * 2 : 0));
    if (adds && wide) {
      fetch_tokens<D>(stage.x, args.x, full, place.b, place.h, begin);
      fetch_tokens<D>(stage.y, args.y, full, place.b, place.h, begin);
      if (kOutputs) fetch_tokens<D>(stage.q, args.q, full, place.b, place.h, begin);
    }
    fetch_bytes(&stage.decays, decays_of(w.in, w.grid, place.head, chunk), sizeof(ChunkDecays), full);
    full.arrive();
  }
  __syncwarp();
}

// --- States
// -------------------------------------------------------------------------------------------------------------

// The thread's part of x^T, 16 rows of its warp from `row` on by all tokens, as a left factor: times the tokens'
// weights, one rounding.
template <int D>
__device__ void weigh_tokens(uint32_t (&a)[kChunk / 16][4], const bf16_t* x, int row, const ChunkDecays& decays,
                             bool reverse) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int k = 0; k < kChunk / 16; ++k) {
    ldmatrix_transposed(a[k], x + panel_index<kChunk>(k * 16 + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8));
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // tokens 2q, 2q + 1, and those eight further
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

// Calls f(row, column, pair) for the pairs of neighbouring elements of the state that a thread holds.
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
__device__ void walk_chunks(const Args& args, Shared<D, kOutputs>& shared, const WalkPlace<bf16_t>& place,
                            float (&state)[D / 8][4], double& log_decay) {
  const SsdWalk<bf16_t>& w = args.w;
  const bool adds = (w.reverse ? w.in.q : w.in.k).data != nullptr;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16,
            row = warp_row + static_cast<int>(threadIdx.x) % kWarp / 4;
  const bool fetches = threadIdx.x / kWarp == kStateGroups<D> * 4 - 1;
  uint32_t a[kChunk / 16][4] = {};
  for (int64_t n = 0; n < place.count; ++n) {
    if (fetches) fetch_chunk(args, shared, place, n + kStages - 1);
    const Turn<kStages> turn(n);
    const Stage<D, kOutputs>& stage = shared.stage[turn.at];
    if (kOutputs) {
      const Turn<2> slot(n);
      shared.state_empty[slot.at].wait(slot.parity ^ 1);
      bf16_t* out = shared.state[slot.at];
      for_each_pair<D>(state, [&](int i, int c, float first, float second) {
        *reinterpret_cast<uint32_t*>(out + panel_index<D>(i, c)) = pack_bf16(first, second);
      });
      publish_writes();
      arrive_warp(shared.state_full[slot.at]);
    }
    if (w.chunk_states != nullptr && warp_row < D) {
      bf16_t* out = static_cast<bf16_t*>(w.chunk_states) +
                    ((place.head - w.first_head) * w.grid.chunks + place.chunk(n)) * D * D + row * D;
      store_row<0>(out, state, true), store_row<1>(out + 8 * D, state, true);
    }
    shared.full[turn.at].wait(turn.parity);
    log_decay += stage.decays.log_total;
    scale_rows(state, stage.decays.total, stage.decays.total);
    if (adds) {
      if (warp_row < D) weigh_tokens<D>(a, stage.x, warp_row, stage.decays, w.reverse);
      begin_products();
      group_product(state, a, Factor<false, kChunk>(stage.y), true);
      commit_products();
      wait_products<0>(state);
    }
    arrive_warp(shared.empty[turn.at]);
  }
}

template <int D, bool kOutputs>
__device__ void walk(const Args& args, Shared<D, kOutputs>& shared, const WalkPlace<bf16_t>& place) {
  const SsdWalk<bf16_t>& w = args.w;
  const int64_t slot = place.head * w.grid.segments + place.segment;
  float state[D / 8][4] = {};
  double log_decay = 0;
  if (threadIdx.x / kWarp == kStateGroups<D> * 4 - 1) {
    for (int n = 0; n < kStages - 1; ++n) fetch_chunk(args, shared, place, n);
  }
  const auto each = [&](const auto& f) { for_each_pair<D>(state, f); };
  enter_walk<D>(w, slot, each);
  walk_chunks(args, shared, place, state, log_decay);
  leave_walk<D>(w, place, slot, log_decay, each);
}

// --- Outputs: y_t = sum_{s <= t} (q_t . k_s) exp(c_t - c_s) dt_s v_s + exp(c_t) S^T q_t + D v_t
// ----------------------------

template <int D>
__device__ void make_outputs(const Args& args, Shared<D, true>& shared, const WalkPlace<bf16_t>& place) {
  const SsdInputs<bf16_t>& in = args.w.in;
  const float skip = in.skip_H == nullptr ? 0.0f : widen(in.skip_H[place.h]);
  const int row = accumulator_row();
  float score[kChunk / 8][4] = {}, y[D / 8][4] = {};
  uint32_t weights[kChunk / 16][4];
  for (int64_t n = 0; n < place.count; ++n) {
    const Turn<kStages> turn(n);
    const Turn<2> slot(n);
    const Stage<D, true>& stage = shared.stage[turn.at];
    const Factor<true, kChunk> q(stage.q);
    shared.full[turn.at].wait(turn.parity);
    begin_products();
    group_product<D / 16>(score, q, Factor<true, kChunk>(stage.x), false);
    commit_products();
    shared.state_full[slot.at].wait(slot.parity);
    begin_products();
    group_product<D / 16>(y, q, Factor<false, D>(shared.state[slot.at]), false);
    commit_products();
    wait_products<1>(score);
    decay_pairs(score, stage.decays, true, PairWeights::columns);
    round_factor(weights, score);
    wait_products<0>(y);
    arrive_warp(shared.state_empty[slot.at]);
    scale_rows(y, stage.decays.from_start[row], stage.decays.from_start[row + 8]);
    begin_products();
    group_product(y, weights, Factor<false, kChunk>(stage.y), true);
    commit_products();
    wait_products<0>(y);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        const int at = panel_index<kChunk>(row + half * 8, i * 8 + accumulator_column());
        const uint32_t v = *reinterpret_cast<const uint32_t*>(stage.y + at);
        y[i][half * 2] += skip * low_bf16(v), y[i][half * 2 + 1] += skip * high_bf16(v);
      }
    }
    arrive_warp(shared.empty[turn.at]);
    const int64_t begin = place.chunk(n) * kChunk, left = in.T - begin;
    store_tokens(args.output, y, place.b, place.h, begin, left < kChunk ? static_cast<int>(left) : kChunk, 0, false,
                 in.wide);
  }
}

template <int D, bool kOutputs>
__global__ void __launch_bounds__(kThreads<D, kOutputs>, kOutputs ? 1 : 2)
    scan_kernel(const __grid_constant__ Args args) {
#if TMAMBA_HAS_WGMMA
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  Shared<D, kOutputs>& shared = *reinterpret_cast<Shared<D, kOutputs>*>(shared_bytes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      shared.full[i].init(1), shared.empty[i].init(kThreads<D, kOutputs> / kWarp);
    }
    for (int i = 0; i < 2; ++i) {
      shared.state_full[i].init(kStateGroups<D> * 4), shared.state_empty[i].init(4);
    }
    publish_barriers();
  }
  __syncthreads();
  const WalkPlace<bf16_t> place(args.w);
  if (threadIdx.x < kStateGroups<D> * kWarpGroup) {
    walk(args, shared, place);
  } else if constexpr (kOutputs) {
    make_outputs(args, shared, place);
  }
#endif
}

template <int D, bool kOutputs>
void run(cudaStream_t stream, const SsdWalk<bf16_t>& w, const Cubes<bf16_t>& y) {
  const SsdInputs<bf16_t>& in = w.in;
  const Args args{w, y, token_map<D>(in, w.reverse ? in.q : in.k), token_map<D>(in, w.reverse ? in.dy : in.v),
                  token_map<D>(in, in.q)};
  launch(stream, {w.segment_count, w.head_count}, kThreads<D, kOutputs>, sizeof(Shared<D, kOutputs>),
         scan_kernel<D, kOutputs>, args);
}

}  // namespace

void ssd_wgmma_walk(cudaStream_t stream, const SsdWalk<bf16_t>& w) {
  dispatch_tile_width(w.in.D, [&]<int kD>() { run<kD, false>(stream, w, {}); });
}

void ssd_wgmma_scan(cudaStream_t stream, const SsdWalk<bf16_t>& w, const Cubes<bf16_t>& y) {
  dispatch_tile_width(w.in.D, [&]<int kD>() { run<kD, true>(stream, w, y); });
}

}  // namespace tmamba::cuda
