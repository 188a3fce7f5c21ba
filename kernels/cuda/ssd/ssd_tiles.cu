// The SSM scan forward, portable: states in float32 registers, GEMM operands in bfloat16.
#include "kernels/cuda/common/hopper.h"
#include "kernels/cuda/ssd/ssd_tiles.cuh"

namespace tmamba::cuda {

namespace {

// --- Decays: one warp per chunk and head; neighbouring warps have neighbouring heads ---

constexpr int kDecayThreads = 256;
// log_a is clamped here: exp(-110) is 0 in float32, so such a token forgets everything in any case. With the clamp the
// differences of a chunk's float32 sums are exact to 2.5e-4, far below the rounding of the bfloat16 operands.
constexpr double kMostDecay = -110;

__global__ void __launch_bounds__(kDecayThreads) decays_kernel(SsdInputs<bf16_t> in, SsdGrid grid, ChunkDecays* out) {
  constexpr int kEach = kChunk / kWarp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kDecayThreads / kWarp) + threadIdx.x / kWarp;
  if (i >= in.heads() * grid.chunks) return;
  const DivMod head(i, in.H), chunk(head.quotient, grid.chunks);
  const int64_t b = chunk.quotient, h = head.remainder;
  ChunkDecays& decays = out[(b * in.H + h) * grid.chunks + chunk.remainder];
  const int lane = threadIdx.x % kWarp;
  double sum[kEach], all = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int64_t t = chunk.remainder * kChunk + lane * kEach + e;
    const double log_a = t < in.T ? static_cast<double>(in.log_a.at(b, t)[h]) : 0.0;
    decays.dt[lane * kEach + e] = t < in.T && in.dt.data != nullptr ? in.dt.at(b, t)[h] : 0.0f;
    sum[e] = (e > 0 ? sum[e - 1] : 0.0) + (log_a < kMostDecay ? kMostDecay : log_a);
    all += log_a;
  }
  all = warp_sum(all);
  double scan = sum[kEach - 1];
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const double other = __shfl_up_sync(0xFFFFFFFFu, scan, step);
    if (lane >= step) scan += other;
  }
  const double last = __shfl_sync(0xFFFFFFFFu, scan, kWarp - 1);
  double before = __shfl_up_sync(0xFFFFFFFFu, scan, 1);
  if (lane == 0) before = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int t = lane * kEach + e;
    const double c = before + sum[e];
    decays.log2[t] = static_cast<float>(c * static_cast<double>(kLog2e));
    decays.from_start[t] = exp2_approx(static_cast<float>(c) * kLog2e);
    decays.to_end[t] = exp2_approx(static_cast<float>(last - c) * kLog2e);
  }
  if (lane == 0) decays.total = exp2_approx(static_cast<float>(last) * kLog2e), decays.log_total = all;
}

void decays(cudaStream_t stream, const SsdInputs<bf16_t>& in, const SsdGrid& grid, void* out) {
  launch(stream, {ceil_div(in.heads() * grid.chunks, kDecayThreads / kWarp)}, kDecayThreads, 0, decays_kernel, in, grid,
         static_cast<ChunkDecays*>(out));
}

// --- Chunk-state scan: the state is divided among kRowWarps x kColWarps warps of a block ---

template <int D>
struct StateScanShape {
  static constexpr int kWarps = D == 128 ? 8 : 4, kThreads = kWarps * kWarp;
  static constexpr int kRowWarps = 2, kColWarps = kWarps / kRowWarps;
  static constexpr int kM = D / 16 / kRowWarps, kN = D / 8 / kColWarps;
  static_assert(kM * kRowWarps * 16 == D && kN * kColWarps * 8 == D && kN % 2 == 0);
};

template <int D>
struct StateScanShared {
  bf16_t x[2][kChunk * kPitch<D>], y[2][kChunk * kPitch<D>];
  ChunkDecays decays[2];
};

// Calls f(row, column, first, second) for each pair of neighbouring state elements that the thread holds.
template <int D, class State, class F>
__device__ void for_each_pair(State& state, const F& f) {
  using Shape = StateScanShape<D>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = warp / Shape::kColWarps * Shape::kM * 16 + lane / 4;
  const int col = warp % Shape::kColWarps * Shape::kN * 8 + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < Shape::kM; ++m) {
#pragma unroll
    for (int n = 0; n < Shape::kN; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        f(row + m * 16 + half * 8, col + n * 8, state[m][n][half * 2], state[m][n][half * 2 + 1]);
      }
    }
  }
}

// Multiplies two neighbouring tokens of operand a by their weights and rounds once.
__device__ inline uint32_t weigh(uint32_t pair, float first, float second) {
  return pack_bf16(low_bf16(pair) * first, high_bf16(pair) * second);
}

// state += sum over the chunk's tokens of weight_s x_s y_s^T
template <int D>
__device__ void add_chunk(float (&state)[StateScanShape<D>::kM][StateScanShape<D>::kN][4], const bf16_t* x,
                          const bf16_t* y, const ChunkDecays& decays, bool reverse) {
  using Shape = StateScanShape<D>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const bf16_t* x_own = x + warp / Shape::kColWarps * Shape::kM * 16;
  const bf16_t* y_own = y + warp % Shape::kColWarps * Shape::kN * 8;
#pragma unroll
  for (int k = 0; k < kChunk / 16; ++k) {
    float weight[4];  // of tokens 2q, 2q + 1, 2q + 8, 2q + 9
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int s = k * 16 + lane % 4 * 2 + i % 2 + i / 2 * 8;
      weight[i] = reverse ? decays.from_start[s] : decays.to_end[s] * decays.dt[s];
    }
    uint32_t a[Shape::kM][4];
#pragma unroll
    for (int m = 0; m < Shape::kM; ++m) {
      load_a<true>(a[m], x_own + k * 16 * kPitch<D> + m * 16, kPitch<D>);
      a[m][0] = weigh(a[m][0], weight[0], weight[1]), a[m][1] = weigh(a[m][1], weight[0], weight[1]);
      a[m][2] = weigh(a[m][2], weight[2], weight[3]), a[m][3] = weigh(a[m][3], weight[2], weight[3]);
    }
#pragma unroll
    for (int n = 0; n < Shape::kN; n += 2) {
      uint32_t b[4];
      load_b<true>(b, y_own + k * 16 * kPitch<D> + n * 8, kPitch<D>);
#pragma unroll
      for (int m = 0; m < Shape::kM; ++m) mma(state[m][n], a[m], b[0], b[1]), mma(state[m][n + 1], a[m], b[2], b[3]);
    }
  }
}

template <int D>
__global__ void __launch_bounds__(StateScanShape<D>::kThreads) state_scan_kernel(SsdStateScan<bf16_t> w) {
  using Shape = StateScanShape<D>;
  extern __shared__ __align__(16) char shared_bytes[];
  StateScanShared<D>& shared = *reinterpret_cast<StateScanShared<D>*>(shared_bytes);
  const StateScanPlace<bf16_t> place(w);
  const Cubes<const bf16_t>&x = w.reverse ? w.in.q : w.in.k, &y = w.reverse ? w.in.dy : w.in.v;
  const int64_t slot = place.head * w.grid.segments + place.segment;
  float state[Shape::kM][Shape::kN][4] = {};
  const auto each = [&](const auto& f) { for_each_pair<D>(state, f); };
  load_entry_state<D>(w, slot, each);
  const auto load_chunk = [&](int64_t n) {
    if (n < place.count) {
      const int64_t begin = place.chunk(n) * kChunk, left = w.in.T - begin, count = left < kChunk ? left : kChunk;
      if (x.data != nullptr) {
        load_tile<kChunk, D, Shape::kThreads>(shared.x[n % 2], x.at(place.b, begin, place.h), x.t, count,
                                              w.in.aligned16);
        load_tile<kChunk, D, Shape::kThreads>(shared.y[n % 2], y.at(place.b, begin, place.h), y.t, count,
                                              w.in.aligned16);
      }
      cp_async_decays<Shape::kThreads>(shared.decays[n % 2], decays_of(w.in, w.grid, place.head, place.chunk(n)));
    }
    cp_async_commit();
  };
  double log_decay = 0;
  load_chunk(0);
  for (int64_t n = 0; n < place.count; ++n) {
    cp_async_wait<0>();
    __syncthreads();
    load_chunk(n + 1);
    if (w.chunk_states != nullptr) {
      bf16_t* out =
          static_cast<bf16_t*>(w.chunk_states) + ((place.head - w.first_head) * w.grid.chunks + place.chunk(n)) * D * D;
      for_each_pair<D>(
          state, [&](int i, int c, float first, float second) { store_pair(out + i * D + c, first, second, true); });
    }
    const ChunkDecays& decays = shared.decays[n % 2];
    log_decay += decays.log_total;
    const float total = decays.total;
    for_each_pair<D>(state, [&](int, int, float& first, float& second) { first *= total, second *= total; });
    if (x.data != nullptr) add_chunk<D>(state, shared.x[n % 2], shared.y[n % 2], decays, w.reverse);
  }
  store_exit_state<D>(w, place, slot, log_decay, each);
}

// --- Outputs: one block per chunk and head, 16 tokens per warp ---

constexpr int kOutputThreads = kChunk / 16 * kWarp;

template <int D>
struct OutputShared {
  bf16_t q[kChunk * kPitch<D>], k[kChunk * kPitch<D>], v[kChunk * kPitch<D>];
  bf16_t state[D * kPitch<D>];
  ChunkDecays decays;
};

// y_t = sum_{s <= t} (q_t . k_s) exp(c_t - c_s) dt_s v_s + exp(c_t) S^T q_t + D v_t
template <int D>
__global__ void __launch_bounds__(kOutputThreads) output_kernel(SsdOutputs<bf16_t> f) {
  extern __shared__ __align__(16) char shared_bytes[];
  OutputShared<D>& shared = *reinterpret_cast<OutputShared<D>*>(shared_bytes);
  const ChunkPlace place(f.in, f.grid, f.first_head);
  load_chunk<D, kOutputThreads>(shared.q, f.in.q, place, f.in.aligned16);
  load_chunk<D, kOutputThreads>(shared.k, f.in.k, place, f.in.aligned16);
  load_chunk<D, kOutputThreads>(shared.v, f.in.v, place, f.in.aligned16);
  load_state<D, kOutputThreads>(shared.state, f.states, place, f.grid);
  cp_async_decays<kOutputThreads>(shared.decays, decays_of(f.in, f.grid, place.head, place.chunk));
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, token = warp * 16 + lane / 4;
  const bf16_t* q = shared.q + warp * 16 * kPitch<D>;
  float score[1][kChunk / 8][4] = {};
  warp_gemm<1, kChunk / 8, D / 16, false, false>(score, q, kPitch<D>, shared.k, kPitch<D>);
#pragma unroll
  for (int n = 0; n < kChunk / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int t = token + e / 2 * 8, s = n * 8 + lane % 4 * 2 + e % 2;
      score[0][n][e] *= shared.decays.between(t, s) * shared.decays.dt[s];
    }
  }
  uint32_t weights[1][kChunk / 16][4];
  to_fragments(weights, score);
  float y[1][D / 8][4] = {};
  warp_gemm<1, D / 8, D / 16, false, true>(y, q, kPitch<D>, shared.state, kPitch<D>);
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) y[0][n][e] *= shared.decays.from_start[token + e / 2 * 8];
  }
  warp_gemm<1, D / 8, kChunk / 16, true>(y, weights, shared.v, kPitch<D>);
  const float skip = f.in.skip_H == nullptr ? 0.0f : widen(f.in.skip_H[place.h]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int t = token + half * 8;
    if (t >= place.count) continue;
    bf16_t* out = f.y.at(place.b, place.begin + t, place.h) + lane % 4 * 2;
    const bf16_t* v = shared.v + t * kPitch<D> + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      store_pair(out + n * 8, y[0][n][half * 2] + skip * widen(v[n * 8]),
                 y[0][n][half * 2 + 1] + skip * widen(v[n * 8 + 1]), f.in.aligned16);
    }
  }
}

template <int D>
void state_scan(cudaStream_t stream, const SsdStateScan<bf16_t>& w) {
  launch(stream, {w.segment_count, w.head_count}, StateScanShape<D>::kThreads, sizeof(StateScanShared<D>),
         state_scan_kernel<D>, w);
}

template <int D>
void outputs(cudaStream_t stream, const SsdOutputs<bf16_t>& f) {
  launch(stream, {f.grid.chunks, f.head_count}, kOutputThreads, sizeof(OutputShared<D>), output_kernel<D>, f);
}

template <int D>
SsdKernels<bf16_t> kernels() {
  return {.state_scan_blocks = 512,
          .chunk = kChunk,
          .state_bytes = sizeof(bf16_t),
          .decay_bytes = sizeof(ChunkDecays),
          .decays = decays,
          .state_scan = state_scan<D>,
          .outputs = outputs<D>,
          .gradients = ssd_tile_gradients<D>};
}

}  // namespace

SsdKernels<bf16_t> ssd_tile_kernels(int64_t D) {
  if (runs_wgmma()) {
    return {.state_scan_blocks = 264,
            .fused_scan_blocks = 132,
            .chunk = kChunk,
            .state_bytes = sizeof(bf16_t),
            .decay_bytes = sizeof(ChunkDecays),
            .decays = decays,
            .state_scan = ssd_wgmma_state_scan,
            .fused_scan = ssd_wgmma_fused_scan,
            .gradients = ssd_wgmma_gradients};
  }
  return dispatch_tile_width(D, [&]<int kD>() { return kernels<kD>(); });
}

}  // namespace tmamba::cuda
