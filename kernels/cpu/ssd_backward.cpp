// The SSM scan backward: a forward pass rebuilds the state before every chunk, then the chunks run backward with G, the
// gradient of the state. All recurrences end at a chunk's border; what crosses it goes through the state and G.
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/ssd_chunk.h"
#include "kernels/ops/ssd_empty.h"

namespace tmamba {

namespace {

template <class A>
struct Gradients {
  Cubes<A> dq, dk, dv, dinitial;
  Planes<A> ddt, dlog_a;
  A* dskip_H = nullptr;
  bool accumulate_v = false;
};

// Scratch of one task, for chunks of up to L tokens.
template <class A>
struct Workspace {
  ChunkDecays<A> decays;
  A *scores, *dscores, *exchange;  // [L, padded L]: see chunk_within
  A *keys, *dk;                    // [L, K]
  A *values, *dv;                  // [L, D]: dv without the factor dt_s
  A *dt, *by_column;               // [padded L]
  A *by_query, *by_key;            // [L]: dlog_a's parts through the state
  Workspace(ScratchFrame& frame, const Scan<A>& scan, int64_t L)
      : decays(frame, L),
        scores(frame.take<A>(L * decays.stride())),
        dscores(frame.take<A>(L * decays.stride())),
        exchange(frame.take<A>(L * decays.stride())),
        keys(frame.take<A>(L * scan.K)),
        dk(frame.take<A>(L * scan.K)),
        values(frame.take<A>(L * scan.D)),
        dv(frame.take<A>(L * scan.D)),
        dt(frame.take_zeros<A>(decays.stride())),
        by_column(frame.take<A>(decays.stride())),
        by_query(frame.take<A>(L)),
        by_key(frame.take<A>(L)) {}
};

template <class A>
A dot(const A* x, const A* y, int64_t count) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += x[i] * y[i];
  return sum;
}

// One chunk of one head.
template <class A>
struct ChunkTask {
  const Scan<A>& scan;
  const Gradients<A>& out;
  Workspace<A>& work;
  int64_t b, h, first, L;

  const A* q() const { return scan.q.at(b, first, h); }
  const A* k() const { return scan.k.at(b, first, h); }
  const A* v() const { return scan.v.at(b, first, h); }
  const A* dy() const { return scan.dy.at(b, first, h); }
};

// Through the state after the chunk: dk_s and dv_s from G; by_key_s is their part of dlog_a.
template <class A>
void through_state_after(const ChunkTask<A>& c, const A* G) {
  const int64_t K = c.scan.K, D = c.scan.D;
  Workspace<A>& w = c.work;
  scale_rows(w.values, c.v(), c.scan.v.t, c.L, D, [&](int64_t s) { return w.decays.to_end(s) * w.dt[s]; });
  gemm(c.L, K, D, 1.0, {w.values, D}, transposed(G, D), 0.0, w.dk, K);
  scale_rows(w.keys, c.k(), c.scan.k.t, c.L, K, [&](int64_t s) { return w.decays.to_end(s); });
  gemm(c.L, D, K, 1.0, {w.keys, K}, {G, D}, 0.0, w.dv, D);
  for (int64_t s = 0; s < c.L; ++s) w.by_key[s] = dot(c.k() + s * c.scan.k.t, w.dk + s * K, K);
}

// Through the state before the chunk: dq_t; by_query_t is their part of dlog_a.
template <class A>
void through_state_before(const ChunkTask<A>& c, const A* state) {
  const int64_t K = c.scan.K, D = c.scan.D;
  Workspace<A>& w = c.work;
  scale_rows(w.values, c.dy(), c.scan.dy.t, c.L, D, [&](int64_t t) { return w.decays.from_start(t); });
  gemm(c.L, K, D, 1.0, {w.values, D}, transposed(state, D), 0.0, c.out.dq.at(c.b, c.first, c.h), c.out.dq.t);
  for (int64_t t = 0; t < c.L; ++t) {
    w.by_query[t] = dot(c.q() + t * c.scan.q.t, c.out.dq.at(c.b, c.first + t, c.h), K);
  }
}

// Pairs of tokens within the chunk. Leaves in
//   scores    (q_t . k_s) exp(c_t - c_s)                            for dv without dt_s
//   dscores   (dy_t . v_s) exp(c_t - c_s) dt_s                      for dq and dk
//   exchange  (q_t . k_s) (dy_t . v_s) exp(c_t - c_s) dt_s          for dlog_a of all tokens after s up to t
template <class A>
void within_chunk(const ChunkTask<A>& c) {
  const int64_t K = c.scan.K, D = c.scan.D, L = c.L;
  Workspace<A>& w = c.work;
  const int64_t stride = w.decays.stride();
  gemm(L, L, K, 1.0, {c.q(), c.scan.q.t}, transposed(c.k(), c.scan.k.t), 0.0, w.scores, stride);
  gemm(L, L, D, 1.0, {c.dy(), c.scan.dy.t}, transposed(c.v(), c.scan.v.t), 0.0, w.dscores, stride);
  for (int64_t t = 0; t < L; ++t) {
    A* scores = w.scores + t * stride;
    A* dscores = w.dscores + t * stride;
    A* exchange = w.exchange + t * stride;
    const A* dt = w.dt;
    w.decays.row(t, [=](int64_t s, bool visible, A decay) {
      const A score = visible ? scores[s] * decay : A(0);
      const A dscore = visible ? dscores[s] * dt[s] : A(0);
      scores[s] = score;
      dscores[s] = dscore * decay;
      exchange[s] = score * dscore;
    });
    for (int64_t s = round_up(t + 1, kLanes); s < L; ++s) scores[s] = 0, dscores[s] = 0;
  }
  A* dq = c.out.dq.at(c.b, c.first, c.h);
  gemm(L, K, L, 1.0, {w.dscores, stride}, {c.k(), c.scan.k.t}, 1.0, dq, c.out.dq.t);
  gemm(L, K, L, 1.0, transposed<A>(w.dscores, stride), {c.q(), c.scan.q.t}, 1.0, w.dk, K);
  gemm(L, D, L, 1.0, transposed<A>(w.scores, stride), {c.dy(), c.scan.dy.t}, 1.0, w.dv, D);
}

// dlog_a_j = all pairs (s, t) with s < j <= t, queries at or after j through the state before the chunk, keys before j
// through the state after it, and the state before through the chunk to the state after (`through`). Sums of
// products of one sign pattern only: no difference of long sums.
template <class A>
void decay_gradient(const ChunkTask<A>& c, A through, bool outputs) {
  Workspace<A>& w = c.work;
  const int64_t L = c.L;
  A keys = 0;
  for (int64_t j = 0; j < L; ++j) {
    c.out.dlog_a.at(c.b, c.first + j)[c.h] = through + keys;
    keys += w.by_key[j];
  }
  if (!outputs) return;
  A queries = 0;
  std::fill_n(w.by_column, L, A(0));
  for (int64_t j = L - 1; j >= 0; --j) {
    const A* row = w.exchange + j * w.decays.stride();
    A* column = w.by_column;  // column s: pairs (s, t) of all t >= j
    A pairs = 0;
#pragma omp simd reduction(+ : pairs)
    for (int64_t s = 0; s < j; ++s) {
      column[s] += row[s];
      pairs += column[s];
    }
    queries += w.by_query[j];
    c.out.dlog_a.at(c.b, c.first + j)[c.h] += queries + pairs;
  }
}

// Writes dk, dv and ddt from the sums in scratch; returns sum_t dy_t . v_t.
template <class A>
A store_gradients(const ChunkTask<A>& c, bool outputs) {
  Workspace<A>& w = c.work;
  const int64_t K = c.scan.K, D = c.scan.D;
  const A skip = c.scan.skip_H == nullptr ? A(0) : c.scan.skip_H[c.h];
  const bool adds = c.out.accumulate_v;
  A dskip = 0;
  for (int64_t s = 0; s < c.L; ++s) {
    const A* dk = w.dk + s * K;
    A* dv = w.dv + s * D;
    const A* v = c.v() + s * c.scan.v.t;
    c.out.ddt.at(c.b, c.first + s)[c.h] = dot(v, static_cast<const A*>(dv), D);
    const A dt = w.dt[s];
    for (int64_t i = 0; i < D; ++i) dv[i] *= dt;
    if (outputs) {
      const A* dy = c.dy() + s * c.scan.dy.t;
      dskip += dot(dy, v, D);
      for (int64_t i = 0; i < D; ++i) dv[i] += skip * dy[i];
    }
    A* dk_out = c.out.dk.at(c.b, c.first + s, c.h);
    A* dv_out = c.out.dv.at(c.b, c.first + s, c.h);
    for (int64_t i = 0; i < K; ++i) dk_out[i] = dk[i];
    for (int64_t i = 0; i < D; ++i) dv_out[i] = adds ? dv_out[i] + dv[i] : dv[i];
  }
  return dskip;
}

// One chunk: all its gradients, and G carried from after it to before it. Returns the chunk's part of dD.
template <class A>
A backward_chunk(const ChunkTask<A>& c, const TokenRange& tokens, const A* state, A* G) {
  const bool outputs = c.scan.q.data != nullptr;
  Workspace<A>& w = c.work;
  c.scan.load(w.decays, c.b, c.h, tokens);
  for (int64_t s = 0; s < c.L; ++s) w.dt[s] = c.scan.dt.at(c.b, c.first + s)[c.h];
  through_state_after(c, G);
  const A through = w.decays.total() * dot(state, static_cast<const A*>(G), c.scan.state_size());
  if (outputs) {
    through_state_before(c, state);
    within_chunk(c);
  }
  decay_gradient(c, through, outputs);
  if (outputs) {
    c.scan.retreat(G, w.decays, c.b, c.h, tokens, w.keys);
  } else {
    for (int64_t i = 0; i < c.scan.state_size(); ++i) G[i] *= w.decays.total();
  }
  return store_gradients(c, outputs);
}

// One span: the states before its chunks, then the chunks backward. `state` is the state before the span.
template <class A>
A backward_span(const Scan<A>& scan, const SpanGrid& grid, const Gradients<A>& out, int64_t b, int64_t h, int64_t span,
                const A* state, A* G) {
  const int64_t begin = grid.first_chunk(span), end = grid.last_chunk(span), size = scan.state_size();
  ScratchFrame frame;
  Workspace<A> work(frame, scan, grid.chunk);
  A* states = frame.take<A>((end - begin) * size);
  std::copy_n(state, size, states);
  for (int64_t chunk = begin; chunk + 1 < end; ++chunk) {
    A* next = states + (chunk + 1 - begin) * size;
    std::copy_n(next - size, size, next);
    scan.load(work.decays, b, h, grid.tokens(chunk));
    scan.advance(next, work.decays, b, h, grid.tokens(chunk), work.keys);
  }
  A dskip = 0;
  for (int64_t chunk = end - 1; chunk >= begin; --chunk) {
    const TokenRange tokens = grid.tokens(chunk);
    const ChunkTask<A> task{scan, out, work, b, h, tokens.begin, tokens.count()};
    dskip += backward_chunk(task, tokens, states + (chunk - begin) * size, G);
  }
  return dskip;
}

template <class A>
void backward(const Scan<A>& scan, const SpanGrid& grid, const Gradients<A>& out, const Cubes<const A>& initial,
              const Cubes<const A>& dfinal) {
  const int64_t heads = scan.B * scan.H;
  ScratchFrame frame;
  const SpanStates<A> before(frame, heads, grid.count, scan.state_size());
  const SpanStates<A> after(frame, heads, grid.count, scan.state_size());
  A* dskip = frame.take<A>(heads * grid.count);
  states_before_spans(scan, grid, initial, before);
  gradients_after_spans(scan, grid, dfinal, after);
  parallel_tasks(heads * grid.count, [&](int64_t task) {
    const int64_t head = task / grid.count, span = task % grid.count, b = head / scan.H, h = head % scan.H;
    A* G = after.state(head, span);
    dskip[task] = backward_span(scan, grid, out, b, h, span, before.state(head, span), G);
    if (span == 0 && out.dinitial.data != nullptr) store_state(out.dinitial, b, h, G, scan.K, scan.D);
  });
  if (out.dskip_H == nullptr) return;
  for (int64_t task = 0; task < heads * grid.count; ++task) out.dskip_H[task / grid.count % scan.H] += dskip[task];
}

}  // namespace

void CpuOps::ssd_backward(const SsdBackward& args) {
  const int64_t B = args.k_BTHD.size(0), T = args.k_BTHD.size(1), H = args.k_BTHD.size(2);
  check_args(Device::cpu, args);
  if (T == 0) return ssd_of_no_tokens(*this, args);
  if (B * H == 0) return;
  dispatch_float(args.k_BTHD.dtype(), [&]<class A>() {
    const bool outputs = !args.q_BTHD.empty();
    Scan<A> scan = scan_of<A>(args);
    scan.dy = cubes<A>(args.dy_BTHD);
    const Gradients<A> out{cubes<A>(args.dq_BTHD),
                           cubes<A>(args.dk_BTHD),
                           cubes<A>(args.dv_BTHD),
                           cubes<A>(args.dinitial_state_BHKD),
                           planes<A>(args.ddt_BTH),
                           planes<A>(args.dlog_a_BTH),
                           outputs ? vector_of<A>(args.dD_H) : nullptr,
                           args.accumulate_v};
    backward(scan, SpanGrid(T, args.chunk, B * H), out, cubes<A>(args.initial_state_BHKD),
             cubes<A>(args.dfinal_state_BHKD));
  });
}

}  // namespace tmamba
