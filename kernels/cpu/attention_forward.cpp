// Attention forward, tile by tile (Dao, FlashAttention-2, 2023): each task owns one tile of queries of one head, walks
// the tiles of keys it sees in order, and keeps a running maximum, sum and output per query.
#include <cmath>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/views.h"

namespace tmamba {

namespace {

template <class A>
struct Forward {
  Cubes<A> o;
  Planes<A> lse;
  Cubes<const A> q, k, v;
  int64_t D, q_begin;
  double scale;
};

// Turns a row of scores into exp(score - maximum) over what is visible, zero beyond, and brings the row's running
// maximum and sum up to date. Returns the factor that the row's earlier output takes.
template <class A>
A softmax_row(A* scores, int64_t visible, int64_t count, A& maximum, A& sum) {
  const int64_t padded = round_up(visible, kLanes);
  for (int64_t s = visible; s < padded; ++s) scores[s] = -std::numeric_limits<A>::infinity();
  A largest = maximum;
#pragma omp simd reduction(max : largest)
  for (int64_t s = 0; s < padded; ++s) largest = scores[s] > largest ? scores[s] : largest;
  A added = 0;
#pragma omp simd reduction(+ : added)
  for (int64_t s = 0; s < padded; ++s) {
    const A p = fast_exp(scores[s] - largest);
    scores[s] = p;
    added += p;
  }
  for (int64_t s = padded; s < count; ++s) scores[s] = 0;
  const A keep = fast_exp(maximum - largest);
  maximum = largest;
  sum = sum * keep + added;
  return keep;
}

template <class A>
void forward_tile(const Forward<A>& f, int64_t b, int64_t h, const TileRange& queries) {
  const int64_t M = queries.count(), D = f.D, first = queries.begin - f.q_begin;
  ScratchFrame frame;
  A* scores = frame.take<A>(M * kAttentionTile);
  A* out = frame.take<A>(M * D);
  A* sum = frame.take_zeros<A>(M);
  A* maximum = frame.take<A>(M);
  std::fill_n(maximum, M, -std::numeric_limits<A>::infinity());
  const TileGrid grid(0, queries.end);
  for (int64_t j = 0; j < grid.count; ++j) {
    const TileRange keys = grid[j];
    gemm(M, keys.count(), D, f.scale, {f.q.at(b, first, h), f.q.t}, transposed(f.k.at(b, keys.begin, h), f.k.t), 0.0,
         scores, kAttentionTile);
    for (int64_t i = 0; i < M; ++i) {
      const A keep = softmax_row(scores + i * kAttentionTile, visible_keys(queries.begin + i, keys), keys.count(),
                                 maximum[i], sum[i]);
      if (j == 0) continue;
      A* row = out + i * D;
      for (int64_t c = 0; c < D; ++c) row[c] *= keep;
    }
    gemm(M, D, keys.count(), 1.0, {scores, kAttentionTile}, {f.v.at(b, keys.begin, h), f.v.t}, j == 0 ? 0.0 : 1.0, out,
         D);
  }
  for (int64_t i = 0; i < M; ++i) {
    const A inverse = A(1) / sum[i];
    A* o = f.o.at(b, first + i, h);
    for (int64_t c = 0; c < D; ++c) o[c] = out[i * D + c] * inverse;
    f.lse.at(b, first + i)[h] = maximum[i] + std::log(sum[i]);
  }
}

}  // namespace

void CpuOps::attention_forward(const AttentionForward& args) {
  const int64_t B = args.q_BTHD.size(0), T = args.q_BTHD.size(1), H = args.q_BTHD.size(2), D = args.q_BTHD.size(3);
  const int64_t S = args.k_BSHD.size(1);
  const DType dtype = args.q_BTHD.dtype();
  expect(args.o_BTHD, "attention o_BTHD", dtype, {B, T, H, D});
  expect(args.lse_BTH, "attention lse_BTH", accumulate_type(dtype), {B, T, H});
  expect(args.q_BTHD, "attention q_BTHD", dtype, {B, T, H, D});
  expect(args.k_BSHD, "attention k_BSHD", dtype, {B, S, H, D});
  expect(args.v_BSHD, "attention v_BSHD", dtype, {B, S, H, D});
  TM_CHECK(args.q_begin >= 0 && args.q_begin + T <= S, "attention: queries ", args.q_begin, " .. ", args.q_begin + T,
           " need as many keys, there are ", S);
  if (B * T * H * D == 0) return;
  dispatch_float(dtype, [&]<class A>() {
    const Forward<A> f{cubes<A>(args.o_BTHD), planes<A>(args.lse_BTH),
                       cubes<A>(args.q_BTHD), cubes<A>(args.k_BSHD),
                       cubes<A>(args.v_BSHD), D,
                       args.q_begin,          args.scale};
    const TileGrid grid(args.q_begin, args.q_begin + T);
    // The last tiles see the most keys; starting with them keeps the threads busy to the end.
    parallel_tasks(grid.count * B * H, [&](int64_t task) {
      const int64_t tile = grid.count - 1 - task / (B * H), b = task % (B * H) / H, h = task % H;
      forward_tile(f, b, h, grid[tile]);
    });
  });
}

}  // namespace tmamba
