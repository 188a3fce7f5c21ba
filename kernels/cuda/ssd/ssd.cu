// The ops of the SSM scan: splitting a sequence into segments, combining segments, and sums over chunks.
#include <algorithm>
#include <limits>

#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/ssd/ssd.cuh"
#include "kernels/ops/ssd_empty.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBatch = 8;  // summaries that the combine kernel loads at a time
// If the states before all chunks would need more memory, the heads are processed in groups.
constexpr size_t kMostStateBytes = size_t{1} << 30;

// The number of segments of a sequence that minimises the estimated time: the chunks that each of `blocks` concurrent
// blocks scans in sequence, plus a fraction of a chunk per segment for the combine kernel.
int64_t segments_for(int64_t heads, int64_t chunks, int64_t blocks) {
  constexpr int64_t kMost = 256, kHeadsPerChunk = 128;  // so many heads are combined in the time of a chunk
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t segments = 1; segments <= std::min(chunks, kMost); ++segments) {
    const int64_t each = ceil_div(chunks, segments), waves = ceil_div(heads * ceil_div(chunks, each), blocks);
    const int64_t cost = waves * each * kHeadsPerChunk + segments * heads;
    if (cost < least) best = segments, least = cost;
  }
  return best;
}

SsdGrid make_grid(int64_t T, int64_t chunk, int64_t heads, int64_t blocks) {
  SsdGrid grid{.chunk = chunk, .chunks = ceil_div(T, chunk), .per_segment = 1, .segments = 1};
  grid.per_segment = ceil_div(grid.chunks, segments_for(heads, grid.chunks, blocks));
  grid.segments = ceil_div(grid.chunks, grid.per_segment);
  return grid;
}

// --- Inter-chunk combine ---

template <class T>
struct Combine {
  T* states;           // [heads, segments, size]: in: summaries; out: the state that enters each segment
  const T* log_decay;  // [heads, segments]
  Cubes<const T> initial;
  Cubes<T> final_state;  // may be absent; if present, the last summary is needed too
  int64_t H, K, D, segments;
  bool reverse;
};

template <class T>
__global__ void __launch_bounds__(kThreads) combine_kernel(Combine<T> f) {
  const int64_t size = f.K * f.D, e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= size) return;
  const int64_t head = blockIdx.y, b = head / f.H, h = head % f.H, i = e / f.D, c = e % f.D;
  T state = f.initial.data == nullptr ? T(0) : f.initial.at(b, h, i)[c];
  const bool through = f.final_state.data != nullptr;
  const auto place = [&](int64_t n) { return head * f.segments + (f.reverse ? f.segments - 1 - n : n); };
  for (int64_t begin = 0; begin < f.segments; begin += kBatch) {
    T summary[kBatch], log_decay[kBatch];
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const bool here = begin + n + 1 < f.segments || (through && begin + n < f.segments);
      summary[n] = here ? f.states[place(begin + n) * size + e] : T(0);
      log_decay[n] = here ? f.log_decay[place(begin + n)] : T(0);
    }
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      if (begin + n >= f.segments) break;
      f.states[place(begin + n) * size + e] = state;
      state = exp(log_decay[n]) * state + summary[n];
    }
  }
  if (through) f.final_state.at(b, h, i)[c] = state;
}

// out [B, H] = the sum of log_a over a sequence. One block per head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    log_decay_kernel(T* out, int64_t out_stride, Planes<const T> log_a, int64_t T_count) {
  __shared__ double scratch[kThreads / kWarp];
  double sum = 0;
  for (int64_t t = threadIdx.x; t < T_count; t += kThreads)
    sum += static_cast<double>(log_a.at(blockIdx.y, t)[blockIdx.x]);
  sum = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) out[blockIdx.y * out_stride + blockIdx.x] = static_cast<T>(sum);
}

// out_h += the sum over sequences and chunks. One block per head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    skip_sum_kernel(T* out_H, const T* partial, int64_t B, int64_t H, int64_t chunks) {
  __shared__ double scratch[kThreads / kWarp];
  double sum = 0;
  for (int64_t b = 0; b < B; ++b) {
    const T* row = partial + (b * H + blockIdx.x) * chunks;
    for (int64_t i = threadIdx.x; i < chunks; i += kThreads) sum += static_cast<double>(row[i]);
  }
  sum = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) out_H[blockIdx.x] += static_cast<T>(sum);
}

template <class T>
void sum_log_decays(cudaStream_t stream, const Tensor& out_BH, const Planes<const T>& log_a, int64_t T_count) {
  if (out_BH.empty()) return;
  launch(stream, {out_BH.size(1), out_BH.size(0)}, kThreads, 0, log_decay_kernel<T>, out_BH.data<T>(), out_BH.stride(0),
         log_a, T_count);
}

// --- A scan: its inputs, grid and kernels ---

template <class A>
struct ChunkedScan {
  using T = Acc<A>;
  cudaStream_t stream;
  SsdInputs<A> in;
  SsdKernels<A> kernels;
  SsdGrid grid;

  // `outputs`: the fused scan will run, if the kernels have one.
  ChunkedScan(cudaStream_t stream_in, const SsdInputs<A>& in_in, bool outputs)
      : stream(stream_in), in(in_in), kernels(kernels_for(in_in)) {
    const bool fused = outputs && kernels.fused_scan != nullptr;
    grid = make_grid(in.T, kernels.chunk, in.heads(), fused ? kernels.fused_scan_blocks : kernels.state_scan_blocks);
  }

  static SsdKernels<A> kernels_for(const SsdInputs<A>& in) {
    if constexpr (std::is_same_v<A, bf16_t>) {
      if (has_ssd_tiles(DType::bf16, in.K, in.D)) return ssd_tile_kernels(in.D);
    }
    return ssd_plain_kernels<A>(in.K, in.D);
  }

  size_t segment_bytes() const { return sizeof(T) * static_cast<size_t>(in.heads() * grid.segments * in.state_size()); }
  size_t decay_bytes() const { return sizeof(T) * static_cast<size_t>(in.heads() * grid.segments); }
  // The decays of all chunks are computed once for all kernels.
  size_t chunk_decay_bytes() const { return kernels.decay_bytes * static_cast<size_t>(in.heads() * grid.chunks); }
  void make_decays(void* memory) {
    if (kernels.decay_bytes == 0) return;
    kernels.decays(stream, in, grid, memory);
    in.decays = memory;
  }
  size_t chunk_bytes_per_head() const {
    return kernels.state_bytes * static_cast<size_t>(grid.chunks * in.state_size());
  }
  // How many heads are processed at once, if `kinds` arrays of chunk states are stored for each.
  int64_t heads_at_once(size_t kinds) const {
    const size_t fit = kMostStateBytes / (kinds * chunk_bytes_per_head());
    return std::clamp<int64_t>(static_cast<int64_t>(fit), 1, in.heads());
  }

  SsdStateScan<A> state_scan(bool reverse) const {
    return {.in = in,
            .grid = grid,
            .reverse = reverse,
            .first_segment = 0,
            .segment_count = grid.segments,
            .first_head = 0,
            .head_count = in.heads(),
            .entry = nullptr,
            .exit = nullptr,
            .log_decay = nullptr,
            .chunk_states = nullptr,
            .last = {}};
  }

  // Steps 1 and 2 (ssd.cuh): computes the state that enters each segment and, if present, `final_state`.
  void scan_segments(bool reverse, T* states, T* log_decay, const Cubes<const T>& initial,
                     const Cubes<T>& final_state) const {
    SsdStateScan<A> w = state_scan(reverse);
    if (final_state.data == nullptr) {  // the summary of the last segment is not needed
      w.segment_count = grid.segments - 1;
      w.first_segment = reverse ? 1 : 0;
    }
    w.exit = states, w.log_decay = log_decay;
    kernels.state_scan(stream, w);
    const Combine<T> combine{states, log_decay, initial, final_state, in.H, in.K, in.D, grid.segments, reverse};
    launch(stream, {ceil_div(in.state_size(), kThreads), in.heads()}, kThreads, 0, combine_kernel<T>, combine);
  }
};

// The inputs of either pass, except dy and aligned16, which the caller sets.
template <class A, class Args>
SsdInputs<A> inputs_of(const Args& args) {
  return {.B = args.k_BTHD.size(0),
          .T = args.k_BTHD.size(1),
          .H = args.k_BTHD.size(2),
          .K = args.k_BTHD.size(3),
          .D = args.v_BTHD.size(3),
          .q = cubes<A>(args.q_BTHD),
          .k = cubes<A>(args.k_BTHD),
          .v = cubes<A>(args.v_BTHD),
          .dy = {},
          .dt = planes<Acc<A>>(args.dt_BTH),
          .log_a = planes<Acc<A>>(args.log_a_BTH),
          .skip_H = vector_of<A>(args.D_H),
          .aligned16 = false};
}

template <class A>
SsdInputs<A> forward_inputs(const SsdForward& args) {
  SsdInputs<A> in = inputs_of<A>(args);
  in.aligned16 = rows_aligned16({args.q_BTHD, args.k_BTHD, args.v_BTHD, args.y_BTHD});
  return in;
}

template <class A>
void forward(cudaStream_t stream, Workspace& workspace, const SsdForward& args) {
  using T = Acc<A>;
  ChunkedScan<A> scan(stream, forward_inputs<A>(args), !args.q_BTHD.empty());
  const SsdInputs<A>& in = scan.in;
  const bool outputs = !args.q_BTHD.empty(), keeps_final = !args.final_state_BHKD.empty();
  sum_log_decays<T>(stream, args.log_decay_BH, in.log_a, in.T);
  if (!outputs && !keeps_final) return;
  const auto initial = cubes<T>(args.initial_state_BHKD);
  const auto final_state = cubes<T>(args.final_state_BHKD);
  const int64_t at_once = scan.heads_at_once(1);
  const bool keeps_states = outputs && scan.kernels.fused_scan == nullptr;
  const size_t chunk_bytes = keeps_states ? static_cast<size_t>(at_once) * scan.chunk_bytes_per_head() : 0;
  const auto memory =
      workspace.take(std::array{scan.segment_bytes(), scan.decay_bytes(), chunk_bytes, scan.chunk_decay_bytes()});
  scan.make_decays(memory[3]);
  T *states = reinterpret_cast<T*>(memory[0]), *log_decay = reinterpret_cast<T*>(memory[1]);
  if (!outputs) return scan.scan_segments(false, states, log_decay, initial, final_state);
  scan.scan_segments(false, states, log_decay, initial, {});
  if (!keeps_states) {
    SsdStateScan<A> w = scan.state_scan(false);
    w.entry = states, w.last = final_state;
    return scan.kernels.fused_scan(stream, w, cubes<A>(args.y_BTHD));
  }
  for (int64_t head = 0; head < in.heads(); head += at_once) {
    const int64_t count = std::min(at_once, in.heads() - head);
    SsdStateScan<A> w = scan.state_scan(false);
    w.entry = states, w.chunk_states = memory[2], w.last = final_state, w.first_head = head, w.head_count = count;
    scan.kernels.state_scan(stream, w);
    scan.kernels.outputs(stream, {in, scan.grid, head, count, memory[2], cubes<A>(args.y_BTHD)});
  }
}

template <class A>
SsdInputs<A> backward_inputs(const SsdBackward& args) {
  SsdInputs<A> in = inputs_of<A>(args);
  in.dy = cubes<A>(args.dy_BTHD);
  in.aligned16 =
      rows_aligned16({args.q_BTHD, args.k_BTHD, args.v_BTHD, args.dy_BTHD, args.dq_BTHD, args.dk_BTHD, args.dv_BTHD});
  return in;
}

template <class A>
void backward(cudaStream_t stream, Workspace& workspace, const SsdBackward& args) {
  using T = Acc<A>;
  ChunkedScan<A> scan(stream, backward_inputs<A>(args), false);
  const SsdInputs<A>& in = scan.in;
  const int64_t at_once = scan.heads_at_once(2);
  const size_t chunk_bytes = static_cast<size_t>(at_once) * scan.chunk_bytes_per_head();
  const auto memory = workspace.take(std::array{
      scan.segment_bytes(), scan.decay_bytes(), scan.segment_bytes(), scan.decay_bytes(), chunk_bytes, chunk_bytes,
      sizeof(T) * static_cast<size_t>(in.heads() * scan.grid.chunks), scan.chunk_decay_bytes()});
  scan.make_decays(memory[7]);
  T *states = reinterpret_cast<T*>(memory[0]), *adjoints = reinterpret_cast<T*>(memory[2]);
  T* skip_partial = reinterpret_cast<T*>(memory[6]);
  scan.scan_segments(false, states, reinterpret_cast<T*>(memory[1]), cubes<T>(args.initial_state_BHKD), {});
  scan.scan_segments(true, adjoints, reinterpret_cast<T*>(memory[3]), cubes<T>(args.dfinal_state_BHKD), {});
  for (int64_t head = 0; head < in.heads(); head += at_once) {
    const int64_t count = std::min(at_once, in.heads() - head);
    SsdStateScan<A> w = scan.state_scan(false);
    w.entry = states, w.chunk_states = memory[4], w.first_head = head, w.head_count = count;
    scan.kernels.state_scan(stream, w);
    w = scan.state_scan(true);
    w.entry = adjoints, w.chunk_states = memory[5], w.first_head = head, w.head_count = count;
    w.last = cubes<T>(args.dinitial_state_BHKD);
    scan.kernels.state_scan(stream, w);
    scan.kernels.gradients(stream, {in, scan.grid, head, count, memory[4], memory[5], cubes<A>(args.dq_BTHD),
                                    cubes<A>(args.dk_BTHD), cubes<A>(args.dv_BTHD), planes<T>(args.ddt_BTH),
                                    planes<T>(args.dlog_a_BTH), skip_partial, args.accumulate_v});
  }
  if (args.q_BTHD.empty() || args.dD_H.empty()) return;
  launch(stream, {in.H}, kThreads, 0, skip_sum_kernel<T>, args.dD_H.data<T>(), static_cast<const T*>(skip_partial),
         in.B, in.H, scan.grid.chunks);
}

}  // namespace

void CudaOps::ssd_forward(const SsdForward& args) {
  const int64_t B = args.k_BTHD.size(0), T = args.k_BTHD.size(1), H = args.k_BTHD.size(2), K = args.k_BTHD.size(3);
  const int64_t D = args.v_BTHD.size(3);
  check_args(Device::cuda, args);
  if (T == 0) return ssd_of_no_tokens(*this, args);
  if (B * H * K * D == 0) return;
  dispatch_activation(args.k_BTHD.dtype(), [&]<class A>() { forward<A>(stream(), workspace_, args); });
}

void CudaOps::ssd_backward(const SsdBackward& args) {
  const int64_t B = args.k_BTHD.size(0), T = args.k_BTHD.size(1), H = args.k_BTHD.size(2), K = args.k_BTHD.size(3);
  const int64_t D = args.v_BTHD.size(3);
  check_args(Device::cuda, args);
  if (T == 0) return ssd_of_no_tokens(*this, args);
  if (B * H * K * D == 0) return;
  dispatch_activation(args.k_BTHD.dtype(), [&]<class A>() { backward<A>(stream(), workspace_, args); });
}

void CudaOps::ssd_adjoint(const SsdAdjoint& args) {
  const int64_t B = args.q_BTHD.size(0), T = args.q_BTHD.size(1), H = args.q_BTHD.size(2), K = args.q_BTHD.size(3),
                D = args.dy_BTHD.size(3);
  check_args(Device::cuda, args);
  if (T == 0) {
    fill({args.dinitial_BHKD, 0});
    if (!args.log_decay_BH.empty()) fill({args.log_decay_BH, 0});
    return;
  }
  if (B * H * K * D == 0) return;
  dispatch_activation(args.q_BTHD.dtype(), [&]<class A>() {
    const SsdInputs<A> in{.B = B,
                          .T = T,
                          .H = H,
                          .K = K,
                          .D = D,
                          .q = cubes<A>(args.q_BTHD),
                          .k = {},
                          .v = {},
                          .dy = cubes<A>(args.dy_BTHD),
                          .dt = {},
                          .log_a = planes<Acc<A>>(args.log_a_BTH),
                          .skip_H = nullptr,
                          .aligned16 = rows_aligned16({args.q_BTHD, args.dy_BTHD})};
    ChunkedScan<A> scan(stream(), in, false);
    sum_log_decays<Acc<A>>(stream(), args.log_decay_BH, in.log_a, T);
    const auto memory = workspace_.take(std::array{scan.segment_bytes(), scan.decay_bytes(), scan.chunk_decay_bytes()});
    scan.make_decays(memory[2]);
    scan.scan_segments(true, reinterpret_cast<Acc<A>*>(memory[0]), reinterpret_cast<Acc<A>*>(memory[1]), {},
                       cubes<Acc<A>>(args.dinitial_BHKD));
  });
}

}  // namespace tmamba::cuda
