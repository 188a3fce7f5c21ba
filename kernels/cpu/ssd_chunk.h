// Shared by the SSM scan's forward, backward and adjoint: the decays of one chunk, the pass of a state over chunks,
// and the split of a sequence into spans of chunks that tasks work on side by side.
//
// Within a chunk c_t = log_a of its tokens 0 .. t summed, so decays between two tokens are exp(c_t - c_s), t >= s.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/base/strided.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec_math.h"

namespace tmamba {

// Tokens [begin, end).
struct TokenRange {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// A sequence of T tokens in chunks, counted from the first token given, and its chunks in spans. The number of spans
// depends on sizes alone: one where there are enough sequences and heads to keep the threads busy, more where not.
struct SpanGrid {
  int64_t T, chunk, chunks, per_span, count;
  SpanGrid(int64_t tokens, int64_t chunk_tokens, int64_t heads)
      : T(tokens),
        chunk(std::clamp<int64_t>(chunk_tokens, 1, std::max<int64_t>(tokens, 1))),
        chunks(ceil_div(T, chunk)) {
    constexpr int64_t kTasks = 16;
    const int64_t spans = std::clamp<int64_t>(kTasks / std::max<int64_t>(heads, 1), 1, std::max<int64_t>(chunks, 1));
    per_span = std::max<int64_t>(1, ceil_div(chunks, spans));
    count = ceil_div(chunks, per_span);
  }
  int64_t first_chunk(int64_t span) const { return span * per_span; }
  int64_t last_chunk(int64_t span) const { return std::min(chunks, (span + 1) * per_span); }
  TokenRange tokens(int64_t chunk_index) const { return {chunk_index * chunk, std::min(T, (chunk_index + 1) * chunk)}; }
};

// The decays of one chunk of one head.
template <class A>
class ChunkDecays {
 public:
  // Memory for chunks of up to `tokens` tokens.
  ChunkDecays(ScratchFrame& frame, int64_t tokens)
      : stride_(round_up(tokens, kLanes)),
        high_(frame.take_zeros<A>(stride_)),
        low_(frame.take_zeros<A>(stride_)),
        from_start_(frame.take<A>(stride_)),
        to_end_(frame.take<A>(stride_)) {}

  // log_a of the chunk's `count` tokens, `stride` apart.
  void load(const A* log_a, int64_t stride, int64_t count) {
    count_ = count;
    double sum = 0;
    for (int64_t t = 0; t < count; ++t) {
      sum += static_cast<double>(log_a[t * stride]);
      high_[t] = static_cast<A>(sum);
      low_[t] = static_cast<A>(sum - static_cast<double>(high_[t]));
    }
    log_total_ = sum;
    for (int64_t t = 0; t < count; ++t) from_start_[t] = fast_exp(high_[t]) * (A(1) + low_[t]);
    const A high = high_[count - 1], low = low_[count - 1];
    for (int64_t t = 0; t < count; ++t) to_end_[t] = fast_exp((high - high_[t]) + (low - low_[t]));
  }

  int64_t count() const { return count_; }
  // Elements between two rows of a [count, count] matrix of scores.
  int64_t stride() const { return stride_; }
  double log_total() const { return log_total_; }
  A total() const { return from_start_[count_ - 1]; }
  A from_start(int64_t t) const { return from_start_[t]; }  // exp(c_t)
  A to_end(int64_t s) const { return to_end_[s]; }          // exp(c_last - c_s)

  // For every s in steps of whole vectors covering 0 .. t: f(s, visible, exp(c_t - c_s)), the decay being 0 where
  // s > t (`visible` false). Masked before the exponential, which could overflow there.
  template <class F>
  void row(int64_t t, const F& f) const {
    const A high = high_[t], low = low_[t];
    const int64_t padded = round_up(t + 1, kLanes);
    const A* const highs = high_;
    const A* const lows = low_;
#pragma omp simd
    for (int64_t s = 0; s < padded; ++s) {
      const bool visible = s <= t;
      const A log_decay = (high - highs[s]) + (low - lows[s]);
      f(s, visible, fast_exp(visible ? log_decay : A(-1e30)));
    }
  }

 private:
  int64_t stride_, count_ = 0;
  double log_total_ = 0;
  A* high_;  // c_t is high + low: one number of type A would lose digits of small differences of large sums
  A* low_;
  A* from_start_;
  A* to_end_;
};

// to [count, width] = factor(t) * from row t
template <class A, class F>
void scale_rows(A* to, const A* from, int64_t from_stride, int64_t count, int64_t width, const F& factor) {
  for (int64_t t = 0; t < count; ++t) {
    const A by = factor(t);
    const A* row = from + t * from_stride;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[t * width + i] = by * row[i];
  }
}

// The sizes and inputs of a scan.
template <class A>
struct Scan {
  int64_t B, T, H, K, D;
  Cubes<const A> q, k, v, dy;
  Planes<const A> dt, log_a;
  const A* skip_H = nullptr;  // D_H

  int64_t state_size() const { return K * D; }

  void load(ChunkDecays<A>& decays, int64_t b, int64_t h, const TokenRange& tokens) const {
    decays.load(log_a.at(b, tokens.begin) + h, log_a.t, tokens.count());
  }

  // state = exp(c_last) state + sum_s exp(c_last - c_s) k_s (dt_s v_s)^T. keys: count x K of scratch.
  void advance(A* state, const ChunkDecays<A>& decays, int64_t b, int64_t h, const TokenRange& tokens, A* keys) const {
    const int64_t first = tokens.begin;
    scale_rows(keys, k.at(b, first, h), k.t, tokens.count(), K,
               [&](int64_t s) { return decays.to_end(s) * dt.at(b, first + s)[h]; });
    gemm(K, D, tokens.count(), 1.0, transposed<A>(keys, K), {v.at(b, first, h), v.t},
         static_cast<double>(decays.total()), state, D);
  }

  // adjoint = exp(c_last) adjoint + sum_t exp(c_t) q_t dy_t^T. queries: count x K of scratch.
  void retreat(A* adjoint, const ChunkDecays<A>& decays, int64_t b, int64_t h, const TokenRange& tokens,
               A* queries) const {
    const int64_t first = tokens.begin;
    scale_rows(queries, q.at(b, first, h), q.t, tokens.count(), K, [&](int64_t t) { return decays.from_start(t); });
    gemm(K, D, tokens.count(), 1.0, transposed<A>(queries, K), {dy.at(b, first, h), dy.t},
         static_cast<double>(decays.total()), adjoint, D);
  }
};

// The scan of a forward or backward pass. The caller sets dy.
template <class A, class Args>
Scan<A> scan_of(const Args& args) {
  return {args.k_BTHD.size(0),    args.k_BTHD.size(1),       args.k_BTHD.size(2),
          args.k_BTHD.size(3),    args.v_BTHD.size(3),       cubes<A>(args.q_BTHD),
          cubes<A>(args.k_BTHD),  cubes<A>(args.v_BTHD),     {},
          planes<A>(args.dt_BTH), planes<A>(args.log_a_BTH), vector_of<A>(args.D_H)};
}

// The state before each span of each head, or the gradient of the state after it: [B * H, spans, K * D], and the
// log-decay of each span.
template <class A>
struct SpanStates {
  int64_t spans, size;
  A* states;
  double* log_decays;
  SpanStates(ScratchFrame& frame, int64_t heads, int64_t span_count, int64_t state_size)
      : spans(span_count),
        size(state_size),
        states(frame.take<A>(heads * span_count * state_size)),
        log_decays(frame.take<double>(heads * span_count)) {}
  A* state(int64_t head, int64_t span) const { return states + (head * spans + span) * size; }
  double& log_decay(int64_t head, int64_t span) const { return log_decays[head * spans + span]; }
};

// out = contribution + exp(log_decay) * out's neighbour: combines the summaries of two spans.
template <class A>
void add_decayed(A* out, const A* neighbour, double log_decay, int64_t size) {
  const A keep = static_cast<A>(std::exp(log_decay));
  for (int64_t i = 0; i < size; ++i) out[i] += keep * neighbour[i];
}

// Copies a state between [K, D] of scratch and a tensor; an absent tensor reads as zero.
template <class A>
void load_state(A* to, const Cubes<const A>& from, int64_t b, int64_t h, int64_t K, int64_t D) {
  for (int64_t i = 0; i < K; ++i) {
    for (int64_t c = 0; c < D; ++c) to[i * D + c] = from.data == nullptr ? A(0) : from.at(b, h, i)[c];
  }
}
template <class A>
void store_state(const Cubes<A>& to, int64_t b, int64_t h, const A* from, int64_t K, int64_t D) {
  for (int64_t i = 0; i < K; ++i) std::copy_n(from + i * D, D, to.at(b, h, i));
}

// The states before every span of every head, given the one before the first. Also leaves each span's log-decay.
template <class A>
void states_before_spans(const Scan<A>& scan, const SpanGrid& grid, const Cubes<const A>& initial,
                         const SpanStates<A>& out);
// The gradients of the states after every span, given the one after the last: the outputs' part is passed backward.
template <class A>
void gradients_after_spans(const Scan<A>& scan, const SpanGrid& grid, const Cubes<const A>& dfinal,
                           const SpanStates<A>& out);

}  // namespace tmamba
