// Attention backward, tile by tile: the probabilities are computed again from lse. A task owns a head and every n-th
// tile of keys, whose dk and dv it alone writes; it visits the queries that see a tile in order. dq gathers over tiles
// of keys: the first task of a head writes it in place, the others into parts that are added in order.
#include "kernels/base/strided.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

namespace tmamba {

namespace {

// The keys of each head are split over as many tasks as make about this many in all.
constexpr int64_t kTasks = 16;

template <class A>
struct Backward {
  Cubes<A> dq, dk, dv;
  Cubes<const A> d_o, o, q, k, v;
  Planes<const A> lse;
  int64_t B, T, H, D, q_begin;
  double scale;
  A* delta_BHT;  // do . o
};

// probs: scores in, softmax out. dscores: do . v in, p (do . v - delta) out. Keys from `visible` on get zero.
template <class A>
void gradient_row(A* probs, A* dscores, int64_t visible, int64_t count, A lse, A delta) {
  const int64_t padded = round_up(visible, kLanes);
#pragma omp simd
  for (int64_t s = 0; s < padded; ++s) {
    const A p = fast_exp(probs[s] - lse);
    probs[s] = p;
    dscores[s] = p * (dscores[s] - delta);
  }
  for (int64_t s = visible; s < count; ++s) probs[s] = 0, dscores[s] = 0;
}

template <class A>
void add_rows(const Cubes<A>& to, int64_t b, int64_t begin, int64_t h, const A* from, int64_t count, int64_t D) {
  for (int64_t i = 0; i < count; ++i) {
    A* row = to.at(b, begin + i, h);
    for (int64_t c = 0; c < D; ++c) row[c] += from[i * D + c];
  }
}

// One head: its queries and output gradients packed, and the memory that collects dq.
template <class A>
struct Head {
  int64_t b, h;
  const A *q, *d_o, *delta;
  A* dq;
  int64_t dq_stride;
};

// One tile of keys of one head: adds to dk, dv and dq.
template <class A>
void backward_keys(const Backward<A>& f, const Head<A>& head, const TileRange& keys) {
  const int64_t D = f.D, count = keys.count();
  ScratchFrame frame;
  A* probs = frame.take<A>(kQueryTile * kKeyTile);
  A* dscores = frame.take<A>(kQueryTile * kKeyTile);
  A* dk = frame.take_zeros<A>(count * D);
  A* dv = frame.take_zeros<A>(count * D);
  A* k_rows = frame.take<A>(count * D);
  A* k_columns = frame.take<A>(D * kKeyTile);
  A* v_columns = frame.take<A>(D * kKeyTile);
  const A* k = f.k.at(head.b, keys.begin, head.h);
  pack_rows(k_rows, k, f.k.t, count, D);
  pack_columns(k_columns, k, f.k.t, count, D);
  pack_columns(v_columns, f.v.at(head.b, keys.begin, head.h), f.v.t, count, D);
  const TileGrid grid(std::max(keys.begin, f.q_begin), f.q_begin + f.T, kQueryTile);
  for (int64_t j = 0; j < grid.count; ++j) {
    const TileRange queries = grid[j];
    const int64_t M = queries.count(), first = queries.begin - f.q_begin;
    const int64_t N = visible_keys(queries.end - 1, keys);
    const A* q = head.q + first * D;
    const A* d_o = head.d_o + first * D;
    gemm(M, N, D, f.scale, {q, D}, {k_columns, kKeyTile}, 0.0, probs, kKeyTile);
    gemm(M, N, D, 1.0, {d_o, D}, {v_columns, kKeyTile}, 0.0, dscores, kKeyTile);
    for (int64_t i = 0; i < M; ++i) {
      gradient_row(probs + i * kKeyTile, dscores + i * kKeyTile, visible_keys(queries.begin + i, keys), N,
                   f.lse.at(head.b, first + i)[head.h], head.delta[first + i]);
    }
    gemm(N, D, M, 1.0, transposed<A>(probs, kKeyTile), {d_o, D}, 1.0, dv, D);
    gemm(N, D, M, f.scale, transposed<A>(dscores, kKeyTile), {q, D}, 1.0, dk, D);
    gemm(M, D, N, f.scale, {dscores, kKeyTile}, {k_rows, D}, 1.0, head.dq + first * head.dq_stride, head.dq_stride);
  }
  add_rows(f.dk, head.b, keys.begin, head.h, dk, count, D);
  add_rows(f.dv, head.b, keys.begin, head.h, dv, count, D);
}

template <class A>
void prepare(const Backward<A>& f) {
  parallel_blocks(f.B * f.T, rows_per_block(f.H * f.D), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / f.T, t = n % f.T;
      for (int64_t h = 0; h < f.H; ++h) {
        const A* d_o = f.d_o.at(b, t, h);
        const A* o = f.o.at(b, t, h);
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < f.D; ++c) sum += d_o[c] * o[c];
        f.delta_BHT[(b * f.H + h) * f.T + t] = sum;
        std::fill_n(f.dq.at(b, t, h), f.D, A(0));
      }
    }
  });
}

template <class A>
void backward(Backward<A> f) {
  const TileGrid key_grid(0, f.q_begin + f.T, kKeyTile);
  const int64_t heads = f.B * f.H, part = f.T * f.D;
  const int64_t shares = std::clamp<int64_t>(kTasks / heads, 1, key_grid.count);
  ScratchFrame frame;
  f.delta_BHT = frame.take<A>(heads * f.T);
  A* dq_parts = frame.take<A>(heads * (shares - 1) * part);
  prepare(f);
  parallel_tasks(heads * shares, [&](int64_t task) {
    const int64_t share = task % shares, b = task / shares / f.H, h = task / shares % f.H;
    ScratchFrame task_frame;
    A* q = task_frame.take<A>(part);
    A* d_o = task_frame.take<A>(part);
    pack_rows(q, f.q.at(b, 0, h), f.q.t, f.T, f.D);
    pack_rows(d_o, f.d_o.at(b, 0, h), f.d_o.t, f.T, f.D);
    Head<A> head{b, h, q, d_o, f.delta_BHT + task / shares * f.T, f.dq.at(b, 0, h), f.dq.t};
    if (share > 0) {
      head.dq = dq_parts + (task / shares * (shares - 1) + share - 1) * part;
      head.dq_stride = f.D;
      std::fill_n(head.dq, part, A(0));
    }
    for (int64_t j = share; j < key_grid.count; j += shares) backward_keys(f, head, key_grid[j]);
  });
  if (shares == 1) return;
  parallel_tasks(heads, [&](int64_t head) {
    for (int64_t share = 1; share < shares; ++share) {
      add_rows(f.dq, head / f.H, 0, head % f.H, dq_parts + (head * (shares - 1) + share - 1) * part, f.T, f.D);
    }
  });
}

}  // namespace

void CpuOps::attention_backward(const AttentionBackward& args) {
  const int64_t B = args.q_BTHD.size(0), T = args.q_BTHD.size(1), H = args.q_BTHD.size(2), D = args.q_BTHD.size(3);
  check_args(Device::cpu, args);
  if (B * T * H * D == 0) return;
  dispatch_float(args.q_BTHD.dtype(), [&]<class A>() {
    backward(Backward<A>{cubes<A>(args.dq_BTHD), cubes<A>(args.dk_BSHD), cubes<A>(args.dv_BSHD), cubes<A>(args.do_BTHD),
                         cubes<A>(args.o_BTHD), cubes<A>(args.q_BTHD), cubes<A>(args.k_BSHD), cubes<A>(args.v_BSHD),
                         planes<A>(args.lse_BTH), B, T, H, D, args.q_begin, args.scale, nullptr});
  });
}

}  // namespace tmamba
