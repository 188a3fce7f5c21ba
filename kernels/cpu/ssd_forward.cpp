// The SSM scan forward (Dao and Gu, Mamba-2, 2024): within a chunk by masked scores, across chunks by the state.
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/ssd_chunk.h"
#include "kernels/ops/ssd_empty.h"

namespace tmamba {

namespace {

// Scratch of one task.
template <class A>
struct Workspace {
  ChunkDecays<A> decays;
  A* scores;  // [chunk, padded chunk]
  A* keys;    // [chunk, K]; also the scaled queries
  A* dt;      // [padded chunk]
  Workspace(ScratchFrame& frame, const Scan<A>& scan, const SpanGrid& grid)
      : decays(frame, grid.chunk),
        scores(frame.take<A>(grid.chunk * decays.stride())),
        keys(frame.take<A>(grid.chunk * scan.K)),
        dt(frame.take_zeros<A>(decays.stride())) {}
};

// y_t = sum_{s <= t} (q_t . k_s) exp(c_t - c_s) dt_s v_s + exp(c_t) state^T q_t + D v_t, for one chunk.
template <class A>
void chunk_outputs(const Scan<A>& scan, const Cubes<A>& y, const A* state, Workspace<A>& work, int64_t b, int64_t h,
                   const TokenRange& tokens) {
  const int64_t L = tokens.count(), first = tokens.begin, stride = work.decays.stride();
  gemm(L, L, scan.K, 1.0, {scan.q.at(b, first, h), scan.q.t}, transposed(scan.k.at(b, first, h), scan.k.t), 0.0,
       work.scores, stride);
  const A skip = scan.skip_H == nullptr ? A(0) : scan.skip_H[h];
  for (int64_t s = 0; s < L; ++s) work.dt[s] = scan.dt.at(b, first + s)[h];
  for (int64_t t = 0; t < L; ++t) {
    A* row = work.scores + t * stride;
    const A* dt = work.dt;
    work.decays.row(t, [=](int64_t s, bool visible, A decay) { row[s] = visible ? row[s] * decay * dt[s] : A(0); });
    row[t] += skip;  // D v_t is one more weight on v_t
    for (int64_t s = round_up(t + 1, kLanes); s < L; ++s) row[s] = 0;
  }
  A* out = y.at(b, first, h);
  gemm(L, scan.D, L, 1.0, {work.scores, stride}, {scan.v.at(b, first, h), scan.v.t}, 0.0, out, y.t);
  scale_rows(work.keys, scan.q.at(b, first, h), scan.q.t, L, scan.K,
             [&](int64_t t) { return work.decays.from_start(t); });
  gemm(L, scan.D, scan.K, 1.0, {work.keys, scan.K}, {state, scan.D}, 1.0, out, y.t);
}

template <class A>
void forward(const Scan<A>& scan, const SpanGrid& grid, const Cubes<A>& y, const Cubes<const A>& initial,
             const Cubes<A>& final_state, Planes<A> log_decay_BH) {
  const int64_t heads = scan.B * scan.H;
  ScratchFrame frame;
  const SpanStates<A> before(frame, heads, grid.count, scan.state_size());
  states_before_spans(scan, grid, initial, before);
  // Without outputs only the last span remains: it yields the final state.
  const int64_t first_span = y.data == nullptr ? grid.count - 1 : 0, spans = grid.count - first_span;
  parallel_tasks(heads * spans, [&](int64_t task) {
    const int64_t head = task / spans, span = first_span + task % spans, b = head / scan.H, h = head % scan.H;
    ScratchFrame task_frame;
    Workspace<A> work(task_frame, scan, grid);
    A* state = before.state(head, span);
    double log_decay = 0;
    for (int64_t chunk = grid.first_chunk(span); chunk < grid.last_chunk(span); ++chunk) {
      const TokenRange tokens = grid.tokens(chunk);
      scan.load(work.decays, b, h, tokens);
      if (y.data != nullptr) chunk_outputs(scan, y, state, work, b, h, tokens);
      scan.advance(state, work.decays, b, h, tokens, work.keys);
      log_decay += work.decays.log_total();
    }
    before.log_decay(head, span) = log_decay;
    if (span + 1 == grid.count && final_state.data != nullptr) {
      store_state(final_state, b, h, state, scan.K, scan.D);
    }
  });
  if (log_decay_BH.data == nullptr) return;
  for (int64_t head = 0; head < heads; ++head) {
    double sum = 0;
    for (int64_t span = 0; span < grid.count; ++span) sum += before.log_decay(head, span);
    log_decay_BH.at(head / scan.H, 0)[head % scan.H] = static_cast<A>(sum);
  }
}

}  // namespace

void CpuOps::ssd_forward(const SsdForward& args) {
  const int64_t B = args.k_BTHD.size(0), T = args.k_BTHD.size(1), H = args.k_BTHD.size(2);
  check_args(Device::cpu, args);
  if (T == 0) return ssd_of_no_tokens(*this, args);
  if (B * H == 0) return;
  dispatch_float(args.k_BTHD.dtype(), [&]<class A>() {
    const Scan<A> scan = scan_of<A>(args);
    Planes<A> log_decay;
    if (!args.log_decay_BH.empty()) log_decay = {args.log_decay_BH.data<A>(), args.log_decay_BH.stride(0), 0};
    forward(scan, SpanGrid(T, args.chunk, B * H), cubes<A>(args.y_BTHD), cubes<A>(args.initial_state_BHKD),
            cubes<A>(args.final_state_BHKD), log_decay);
  });
}

}  // namespace tmamba
