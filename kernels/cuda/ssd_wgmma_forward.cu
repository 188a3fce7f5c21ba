// The SSM scan forward on Hopper: the walk over states and the outputs of every chunk. States in float32 registers,
// products of bfloat16.
#include "kernels/cuda/ssd_wgmma.cuh"

namespace tmamba::cuda {

namespace {

// --- Walk: each warpgroup of a block has 64 rows of the state (of the second, of D = 96, half are not there)
// ----------------------------

constexpr int kStages = 3;  // chunks of tokens under way at once

template <int D>
constexpr int kWalkThreads = (D + 63) / 64 * kWarpGroup;

struct WalkArgs {
  SsdWalk<bf16_t> w;
  CUtensorMap x, y;  // of the product x y^T: k, v, or in reverse q, dy
};

template <int D>
struct WalkStage {
  alignas(kPanelAlign) bf16_t x[kChunk * D];
  alignas(kPanelAlign) bf16_t y[kChunk * D];
  ChunkDecays decays;
};

template <int D>
struct WalkShared {
  WalkStage<D> stage[kStages];
  Barrier full[kStages];
};

// One thread: has the copy engine fetch the n-th chunk of a walk.
template <int D>
__device__ void fetch_chunk(const WalkArgs& args, WalkShared<D>& shared, const WalkPlace<bf16_t>& place, int64_t n) {
  const SsdWalk<bf16_t>& w = args.w;
  WalkStage<D>& stage = shared.stage[n % kStages];
  Barrier& full = shared.full[n % kStages];
  const bool tiles = w.in.wide && (w.reverse ? w.in.q : w.in.k).data != nullptr;
  const int64_t chunk = place.chunk(n);
  full.expect(static_cast<int>(sizeof(ChunkDecays)) + (tiles ? 2 * kChunk * D * 2 : 0));
  if (tiles) {
    fetch_tokens<D>(stage.x, args.x, full, place.b, place.h, chunk * kChunk);
    fetch_tokens<D>(stage.y, args.y, full, place.b, place.h, chunk * kChunk);
  }
  fetch_bytes(&stage.decays, decays_of(w.in, w.grid, place.head, chunk), sizeof(ChunkDecays), full);
  full.arrive();
}

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
template <int D, class F>
__device__ void for_each_pair(float (&state)[D / 8][4], const F& f) {
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

template <int D>
__device__ void store_state(bf16_t* out, const float (&state)[D / 8][4]) {
  const int row = static_cast<int>(threadIdx.x) / kWarpGroup * 64 + accumulator_row();
  if (row >= D) return;  // whole warps
  store_row<0>(out + row * D, state, true), store_row<1>(out + (row + 8) * D, state, true);
}

template <int D>
__device__ void walk_chunks(const WalkArgs& args, WalkShared<D>& shared, const WalkPlace<bf16_t>& place,
                            float (&state)[D / 8][4], double& log_decay) {
  const SsdWalk<bf16_t>& w = args.w;
  const Cubes<const bf16_t>&x = w.reverse ? w.in.q : w.in.k, &y = w.reverse ? w.in.dy : w.in.v;
  const bool adds = x.data != nullptr;
  const int row = static_cast<int>(threadIdx.x) / kWarp * 16;
  uint32_t a[kChunk / 16][4] = {};
  for (int64_t n = 0; n < place.count; ++n) {
    WalkStage<D>& stage = shared.stage[n % kStages];
    const int64_t chunk = place.chunk(n), begin = chunk * kChunk;
    shared.full[n % kStages].wait(static_cast<uint32_t>(n / kStages % 2));
    if (adds && !w.in.wide) {
      copy_tokens<D, kWalkThreads<D>>(stage.x, x, place.b, place.h, begin, w.in.T - begin);
      copy_tokens<D, kWalkThreads<D>>(stage.y, y, place.b, place.h, begin, w.in.T - begin);
      publish_writes();
      __syncthreads();
    }
    if (w.chunk_states != nullptr) {
      store_state<D>(
          static_cast<bf16_t*>(w.chunk_states) + ((place.head - w.first_head) * w.grid.chunks + chunk) * D * D, state);
    }
    log_decay += stage.decays.log_total;
    scale_rows(state, stage.decays.total, stage.decays.total);
    if (adds) {
      if (row < D) weigh_tokens<D>(a, stage.x, row, stage.decays, w.reverse);
      begin_products();
      group_product(state, a, Factor<false, kChunk>(stage.y), true);
      commit_products();
      wait_products<0>(state);
    }
    __syncthreads();
    if (threadIdx.x == 0 && n + kStages < place.count) fetch_chunk(args, shared, place, n + kStages);
  }
}

template <int D>
__global__ void __launch_bounds__(kWalkThreads<D>, 2) walk_kernel(const __grid_constant__ WalkArgs args) {
#if TMAMBA_HAS_WGMMA
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  WalkShared<D>& shared = *reinterpret_cast<WalkShared<D>*>(shared_bytes);
  const SsdWalk<bf16_t>& w = args.w;
  const WalkPlace<bf16_t> place(w);
  const int64_t slot = place.head * w.grid.segments + place.segment;
  if (threadIdx.x == 0) {
    for (Barrier& full : shared.full) full.init(1);
    publish_barriers();
    for (int n = 0; n < kStages && n < place.count; ++n) fetch_chunk(args, shared, place, n);
  }
  float state[D / 8][4] = {};
  if (w.entry != nullptr) {
    for_each_pair<D>(state, [&](int i, int c, float& first, float& second) {
      const float2 pair = *reinterpret_cast<const float2*>(w.entry + slot * D * D + i * D + c);
      first = pair.x, second = pair.y;
    });
  }
  __syncthreads();
  double log_decay = 0;
  walk_chunks<D>(args, shared, place, state, log_decay);
  if (w.exit != nullptr) {
    for_each_pair<D>(state, [&](int i, int c, float first, float second) {
      *reinterpret_cast<float2*>(w.exit + slot * D * D + i * D + c) = {first, second};
    });
    if (threadIdx.x == 0) w.log_decay[slot] = static_cast<float>(log_decay);
  }
  if (w.last.data != nullptr && place.last) {
    for_each_pair<D>(state, [&](int i, int c, float first, float second) {
      float* out = w.last.at(place.b, place.h, i) + c;
      out[0] = first, out[1] = second;
    });
  }
#endif
}

// --- Outputs: a block per chunk and head
// ------------------------------------------------------------------------------

constexpr int kOutputThreads = kWarpGroup;

struct OutputArgs {
  SsdOutputs<bf16_t> f;
  CUtensorMap q, k, v, state;
};

template <int D>
struct OutputShared {
  alignas(kPanelAlign) bf16_t q[kChunk * D];
  alignas(kPanelAlign) bf16_t k[kChunk * D];
  alignas(kPanelAlign) bf16_t v[kChunk * D];
  alignas(kPanelAlign) bf16_t state[D * D];
  ChunkDecays decays;
  Barrier pairs_full, full;
};

// y_t = sum_{s <= t} (q_t . k_s) exp(c_t - c_s) dt_s v_s + exp(c_t) S^T q_t + D v_t
template <int D>
__global__ void __launch_bounds__(kOutputThreads, D == 128 ? 2 : 4)
    output_kernel(const __grid_constant__ OutputArgs args) {
#if TMAMBA_HAS_WGMMA
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  OutputShared<D>& shared = *reinterpret_cast<OutputShared<D>*>(shared_bytes);
  const SsdOutputs<bf16_t>& f = args.f;
  const ChunkItem at(f.in, f.grid, f.first_head, blockIdx.x);
  const bool wide = f.in.wide;
  if (threadIdx.x == 0) {
    shared.pairs_full.init(1), shared.full.init(1);
    publish_barriers();
    constexpr int kTile = kChunk * D * 2;
    shared.pairs_full.expect(static_cast<int>(sizeof(ChunkDecays)) + (wide ? 2 * kTile : 0));
    shared.full.expect(D * D * 2 + (wide ? kTile : 0));
    if (wide) {
      fetch_tokens<D>(shared.q, args.q, shared.pairs_full, at.b, at.h, at.begin);
      fetch_tokens<D>(shared.k, args.k, shared.pairs_full, at.b, at.h, at.begin);
    }
    fetch_bytes(&shared.decays, decays_of(f.in, f.grid, at.head, at.chunk), sizeof(ChunkDecays), shared.pairs_full);
    shared.pairs_full.arrive();
    fetch_tile<D, D>(shared.state, args.state, {}, shared.full, blockIdx.x, 0, 0, 0, true);
    if (wide) fetch_tokens<D>(shared.v, args.v, shared.full, at.b, at.h, at.begin);
    shared.full.arrive();
  }
  if (!wide) {
    copy_tokens<D, kOutputThreads>(shared.q, f.in.q, at.b, at.h, at.begin, at.count);
    copy_tokens<D, kOutputThreads>(shared.k, f.in.k, at.b, at.h, at.begin, at.count);
    copy_tokens<D, kOutputThreads>(shared.v, f.in.v, at.b, at.h, at.begin, at.count);
    publish_writes();
  }
  __syncthreads();

  const Factor<true, kChunk> q(shared.q);
  float score[kChunk / 8][4] = {}, y[D / 8][4] = {};
  shared.pairs_full.wait(0);
  begin_products();
  group_product<D / 16>(score, q, Factor<true, kChunk>(shared.k), false);
  commit_products();
  shared.full.wait(0);
  begin_products();
  group_product<D / 16>(y, q, Factor<false, D>(shared.state), false);
  commit_products();
  wait_products<1>(score);
  decay_pairs<true, true>(score, shared.decays);
  uint32_t weights[kChunk / 16][4];
  round_factor(weights, score);
  wait_products<0>(y);
  const int row = accumulator_row();
  scale_rows(y, shared.decays.from_start[row], shared.decays.from_start[row + 8]);
  begin_products();
  group_product(y, weights, Factor<false, kChunk>(shared.v), true);
  commit_products();
  wait_products<0>(y);
  const float skip = f.in.skip_H == nullptr ? 0.0f : widen(f.in.skip_H[at.h]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int place = panel_index<kChunk>(row + half * 8, n * 8 + accumulator_column());
      const uint32_t v = *reinterpret_cast<const uint32_t*>(shared.v + place);
      y[n][half * 2] += skip * low_bf16(v), y[n][half * 2 + 1] += skip * high_bf16(v);
    }
  }
  store_tokens<D>(f.y, y, at, false, wide);
#endif
}

template <int D>
void walk(cudaStream_t stream, const SsdWalk<bf16_t>& w) {
  const SsdInputs<bf16_t>& in = w.in;
  const WalkArgs args{w, token_map<D>(in, w.reverse ? in.q : in.k), token_map<D>(in, w.reverse ? in.dy : in.v)};
  launch(stream, {w.segment_count, w.head_count}, kWalkThreads<D>, sizeof(WalkShared<D>), walk_kernel<D>, args);
}

template <int D>
void outputs(cudaStream_t stream, const SsdOutputs<bf16_t>& f) {
  const int64_t items = f.grid.chunks * f.head_count;
  const OutputArgs args{f, token_map<D>(f.in, f.in.q), token_map<D>(f.in, f.in.k), token_map<D>(f.in, f.in.v),
                        state_map<D>(f.states, items)};
  launch(stream, {items}, kOutputThreads, sizeof(OutputShared<D>), output_kernel<D>, args);
}

}  // namespace

void ssd_wgmma_walk(cudaStream_t stream, const SsdWalk<bf16_t>& w) {
  if (w.segment_count == 0) return;
  if (w.in.D == 64) return walk<64>(stream, w);
  if (w.in.D == 96) return walk<96>(stream, w);
  walk<128>(stream, w);
}

void ssd_wgmma_outputs(cudaStream_t stream, const SsdOutputs<bf16_t>& f) {
  if (f.in.D == 64) return outputs<64>(stream, f);
  if (f.in.D == 96) return outputs<96>(stream, f);
  outputs<128>(stream, f);
}

}  // namespace tmamba::cuda
