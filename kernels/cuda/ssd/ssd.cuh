// Shared by the kernels of the SSM scan (the chunked algorithm of Mamba-2). A sequence is split into chunks, within
// which tokens interact through matrices, and consecutive chunks form segments, which different blocks scan in
// parallel:
//   1. chunk-state scan over each segment from a zero state: the segment's summary;
//   2. combine: from the summaries, in order, the state that enters each segment;
//   3. chunk-state scan again, which stores the state before each chunk;
//   4. outputs or gradients of all chunks in parallel.
// A fused scan does 3 and the outputs of 4 in one kernel and stores no states.
// The gradient of the state takes the same steps in reverse. Three families of kernels do 1, 3 and 4: Hopper and
// portable tensor-core kernels (bfloat16, K = D = 64, 96, 128) and plain kernels (all types and sizes).
//
// c_t is the sum of log_a over the tokens of a chunk up to t, S the state, G the gradient of the loss with respect to
// S.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/tile_width.h"

namespace tmamba::cuda {

template <class A>
struct SsdInputs {
  int64_t B, T, H, K, D;
  Cubes<const A> q, k, v, dy;
  Planes<const Acc<A>> dt, log_a;
  const A* skip_H;               // D_H
  bool aligned16;                // rows_aligned16() of all tensors except states
  const void* decays = nullptr;  // [B * H, chunks]: ChunkDecays, for kernels with decay_bytes > 0
  __host__ __device__ int64_t heads() const { return B * H; }
  int64_t state_size() const { return K * D; }
};

struct SsdGrid {
  int64_t chunk, chunks, per_segment, segments;
};

// The chunk-state scan over segments. For S, forward: S = exp(c_last) S + sum_s exp(c_last - c_s) k_s (dt_s v_s)^T for
// each chunk. For G, in reverse: G = exp(c_last) G + sum_t exp(c_t) q_t dy_t^T.
template <class A>
struct SsdStateScan {
  SsdInputs<A> in;
  SsdGrid grid;
  bool reverse;
  int64_t first_segment, segment_count;
  int64_t first_head, head_count;
  // [B * H, segments, K * D]: the state that enters each segment; null means zero.
  const Acc<A>* entry;
  // Summaries: the state that leaves each segment (layout of `entry`), and each segment's log-decay [B * H, segments].
  // Either these or chunk_states are stored; null: not stored.
  Acc<A>*exit, *log_decay;
  // [head_count, chunks, K * D]: the state before each chunk (in reverse: after it), in the kernels' state type.
  void* chunk_states;
  Cubes<Acc<A>> last;  // BHKD: the state that leaves the last segment scanned; may be absent
};

template <class A>
struct SsdOutputs {
  SsdInputs<A> in;
  SsdGrid grid;
  int64_t first_head, head_count;
  const void* states;
  Cubes<A> y;
};

template <class A>
struct SsdGradients {
  SsdInputs<A> in;
  SsdGrid grid;
  int64_t first_head, head_count;
  const void *states, *adjoints;  // S before and G after each chunk
  Cubes<A> dq, dk, dv;
  Planes<Acc<A>> ddt, dlog_a;
  Acc<A>* skip_partial;  // [B * H, chunks]: sum of dy . v
  bool accumulate_v;
};

// One family of kernels.
template <class A>
struct SsdKernels {
  int64_t state_scan_blocks;      // blocks of a state scan that a GPU runs at once; segments are chosen to fill it
  int64_t fused_scan_blocks = 0;  // the same for the fused scan
  int64_t chunk;                  // tokens
  size_t state_bytes;             // of an element of chunk_states
  size_t decay_bytes;             // of a chunk's ChunkDecays; 0 if the kernels compute decays themselves
  void (*decays)(cudaStream_t, const SsdInputs<A>&, const SsdGrid&, void*);
  void (*state_scan)(cudaStream_t, const SsdStateScan<A>&);
  // Exactly one is set: `fused_scan` stores outputs instead of chunk states; `outputs` computes them from chunk states.
  void (*fused_scan)(cudaStream_t, const SsdStateScan<A>&, const Cubes<A>& y) = nullptr;
  void (*outputs)(cudaStream_t, const SsdOutputs<A>&) = nullptr;
  void (*gradients)(cudaStream_t, const SsdGradients<A>&);
};

// Throws if a block's shared memory is too small for such heads.
template <class A>
SsdKernels<A> ssd_plain_kernels(int64_t K, int64_t D);
SsdKernels<bf16_t> ssd_tile_kernels(int64_t D);

inline bool has_ssd_tiles(DType dtype, int64_t K, int64_t D) {
  return dtype == DType::bf16 && K == D && is_tile_width(D);
}

// --- Device code ---

// The chunk and head of a block in a grid of (chunks, heads).
struct ChunkPlace {
  int64_t chunk, slot, head, b, h, begin;  // slot: the head's index within the launch
  int count;
  template <class A>
  __device__ ChunkPlace(const SsdInputs<A>& in, const SsdGrid& grid, int64_t first_head) {
    chunk = blockIdx.x, slot = blockIdx.y, head = first_head + slot;
    b = head / in.H, h = head % in.H;
    begin = chunk * grid.chunk;
    count = static_cast<int>(in.T - begin < grid.chunk ? in.T - begin : grid.chunk);
  }
};

// The decays of one chunk of up to kChunk tokens of one head. Tokens beyond the last neither decay nor contribute
// (dt = 0).
template <class A, int kChunk>
struct alignas(16) Decays {
  using T = Acc<A>;
  static constexpr int kEach = kChunk / kWarp;

  T high[kChunk], low[kChunk];  // c_t = high + low: one value would lose digits in differences of large sums
  T from_start[kChunk];         // exp(c_t)
  T to_end[kChunk];             // exp(c_last - c_s)
  T dt[kChunk];
  T total;  // exp(c_last)
  double log_total;

  // Computes the decays of tokens [begin, begin + count) of the sequence; called by all lanes of one warp.
  __device__ void load_decays(const SsdInputs<A>& in, int64_t b, int64_t h, int64_t begin, int64_t count) {
    const int lane = threadIdx.x % kWarp;
    double sum[kEach], before = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int t = lane * kEach + i;
      sum[i] = (i > 0 ? sum[i - 1] : 0.0) + (t < count ? static_cast<double>(in.log_a.at(b, begin + t)[h]) : 0.0);
      dt[t] = t < count && in.dt.data != nullptr ? in.dt.at(b, begin + t)[h] : T(0);
    }
    double fused_scan = sum[kEach - 1];
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(0xFFFFFFFFu, fused_scan, step);
      if (lane >= step) fused_scan += other;
    }
    before = __shfl_up_sync(0xFFFFFFFFu, fused_scan, 1);
    if (lane == 0) before = 0;
    const double all = __shfl_sync(0xFFFFFFFFu, fused_scan, kWarp - 1);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int t = lane * kEach + i;
      const double c = before + sum[i];
      high[t] = static_cast<T>(c);
      low[t] = static_cast<T>(c - static_cast<double>(high[t]));
      from_start[t] = exp_of<A>(high[t]);
      to_end[t] = exp_of<A>(static_cast<T>(all - c));
    }
    if (lane == 0) log_total = all, total = exp_of<A>(static_cast<T>(all));
  }

  // exp(c_t - c_s) for s <= t, 0 for s > t: masked before the exponential, which could overflow for s > t.
  __device__ T between(int t, int s) const {
    return s <= t ? exp_of<A>((high[t] - high[s]) + (low[t] - low[s])) : T(0);
  }
};

// A block's segment of one head; chunk(n) is the n-th chunk in the order of the scan.
template <class A>
struct StateScanPlace {
  int64_t head, b, h, segment, begin, count;
  bool reverse, last;
  __device__ explicit StateScanPlace(const SsdStateScan<A>& w) {
    segment = w.first_segment + blockIdx.x;
    head = w.first_head + blockIdx.y;
    b = head / w.in.H, h = head % w.in.H;
    begin = segment * w.grid.per_segment;
    const int64_t end = begin + w.grid.per_segment < w.grid.chunks ? begin + w.grid.per_segment : w.grid.chunks;
    count = end - begin;
    reverse = w.reverse;
    last = segment == (reverse ? 0 : w.grid.segments - 1);
  }
  __device__ int64_t chunk(int64_t n) const { return reverse ? begin + count - 1 - n : begin + n; }
};

}  // namespace tmamba::cuda
