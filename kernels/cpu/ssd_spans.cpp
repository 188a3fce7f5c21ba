// The scan over spans: the summaries of spans in parallel, then combined in order. Also the adjoint op, which is the
// backward summary.
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/ssd_chunk.h"

namespace tmamba {

template <class A>
void states_before_spans(const Scan<A>& scan, const SpanGrid& grid, const Cubes<const A>& initial,
                         const SpanStates<A>& out) {
  const int64_t heads = scan.B * scan.H, size = scan.state_size();
  // Span s leaves its summary where the state before span s + 1 will be.
  parallel_tasks(heads * (grid.count - 1), [&](int64_t task) {
    const int64_t head = task / (grid.count - 1), span = task % (grid.count - 1), b = head / scan.H, h = head % scan.H;
    ScratchFrame frame;
    ChunkDecays<A> decays(frame, grid.chunk);
    A* keys = frame.take<A>(grid.chunk * scan.K);
    A* state = out.state(head, span + 1);
    std::fill_n(state, size, A(0));
    double log_decay = 0;
    for (int64_t chunk = grid.first_chunk(span); chunk < grid.last_chunk(span); ++chunk) {
      scan.load(decays, b, h, grid.tokens(chunk));
      scan.advance(state, decays, b, h, grid.tokens(chunk), keys);
      log_decay += decays.log_total();
    }
    out.log_decay(head, span) = log_decay;
  });
  parallel_tasks(heads, [&](int64_t head) {
    load_state(out.state(head, 0), initial, head / scan.H, head % scan.H, scan.K, scan.D);
    for (int64_t span = 1; span < grid.count; ++span) {
      add_decayed(out.state(head, span), out.state(head, span - 1), out.log_decay(head, span - 1), size);
    }
  });
}

template <class A>
void gradients_after_spans(const Scan<A>& scan, const SpanGrid& grid, const Cubes<const A>& dfinal,
                           const SpanStates<A>& out) {
  const int64_t heads = scan.B * scan.H, size = scan.state_size();
  // Span s leaves its summary where the gradient after span s - 1 will be.
  parallel_tasks(heads * (grid.count - 1), [&](int64_t task) {
    const int64_t head = task / (grid.count - 1), span = task % (grid.count - 1) + 1, b = head / scan.H,
                  h = head % scan.H;
    ScratchFrame frame;
    ChunkDecays<A> decays(frame, grid.chunk);
    A* queries = frame.take<A>(grid.chunk * scan.K);
    A* adjoint = out.state(head, span - 1);
    std::fill_n(adjoint, size, A(0));
    double log_decay = 0;
    for (int64_t chunk = grid.last_chunk(span) - 1; chunk >= grid.first_chunk(span); --chunk) {
      scan.load(decays, b, h, grid.tokens(chunk));
      if (scan.q.data != nullptr) scan.retreat(adjoint, decays, b, h, grid.tokens(chunk), queries);
      log_decay += decays.log_total();
    }
    out.log_decay(head, span) = log_decay;
  });
  parallel_tasks(heads, [&](int64_t head) {
    load_state(out.state(head, grid.count - 1), dfinal, head / scan.H, head % scan.H, scan.K, scan.D);
    for (int64_t span = grid.count - 2; span >= 0; --span) {
      add_decayed(out.state(head, span), out.state(head, span + 1), out.log_decay(head, span + 1), size);
    }
  });
}

template void states_before_spans(const Scan<float>&, const SpanGrid&, const Cubes<const float>&,
                                  const SpanStates<float>&);
template void states_before_spans(const Scan<double>&, const SpanGrid&, const Cubes<const double>&,
                                  const SpanStates<double>&);
template void gradients_after_spans(const Scan<float>&, const SpanGrid&, const Cubes<const float>&,
                                    const SpanStates<float>&);
template void gradients_after_spans(const Scan<double>&, const SpanGrid&, const Cubes<const double>&,
                                    const SpanStates<double>&);

namespace {

// The outputs' gradient at the start of span 0: the gradient after the span, carried back over it.
template <class A>
void adjoint(const Scan<A>& scan, const SpanGrid& grid, const Cubes<A>& dinitial, const Planes<A>& log_decay_BH) {
  const int64_t heads = scan.B * scan.H;
  ScratchFrame frame;
  const SpanStates<A> after(frame, heads, std::max<int64_t>(grid.count, 1), scan.state_size());
  gradients_after_spans(scan, grid, Cubes<const A>{}, after);
  parallel_tasks(heads, [&](int64_t head) {
    const int64_t b = head / scan.H, h = head % scan.H;
    ScratchFrame task_frame;
    ChunkDecays<A> decays(task_frame, grid.chunk);
    A* queries = task_frame.take<A>(grid.chunk * scan.K);
    A* state = after.state(head, 0);
    double log_decay = 0;
    for (int64_t chunk = grid.last_chunk(0) - 1; chunk >= 0; --chunk) {
      scan.load(decays, b, h, grid.tokens(chunk));
      scan.retreat(state, decays, b, h, grid.tokens(chunk), queries);
      log_decay += decays.log_total();
    }
    for (int64_t span = 1; span < grid.count; ++span) log_decay += after.log_decay(head, span);
    store_state(dinitial, b, h, state, scan.K, scan.D);
    if (log_decay_BH.data != nullptr) log_decay_BH.at(b, 0)[h] = static_cast<A>(log_decay);
  });
}

}  // namespace

void CpuOps::ssd_adjoint(const SsdAdjoint& args) {
  const int64_t B = args.q_BTHD.size(0), T = args.q_BTHD.size(1), H = args.q_BTHD.size(2), K = args.q_BTHD.size(3),
                D = args.dy_BTHD.size(3);
  check_args(Device::cpu, args);
  if (T == 0) {
    fill({args.dinitial_BHKD, 0});
    if (!args.log_decay_BH.empty()) fill({args.log_decay_BH, 0});
    return;
  }
  dispatch_float(args.q_BTHD.dtype(), [&]<class A>() {
    Scan<A> scan{B, T, H, K, D, cubes<A>(args.q_BTHD), {}, {}, cubes<A>(args.dy_BTHD), {}, planes<A>(args.log_a_BTH)};
    Planes<A> log_decay;
    if (!args.log_decay_BH.empty()) log_decay = {args.log_decay_BH.data<A>(), args.log_decay_BH.stride(0), 0};
    adjoint(scan, SpanGrid(T, args.chunk, B * H), cubes<A>(args.dinitial_BHKD), log_decay);
  });
}

}  // namespace tmamba
