// Attention forward, tile by tile (Dao, FlashAttention-2, 2023): each task owns one tile of queries of one head, walks
// the tiles of keys it sees in order, and keeps a running maximum, sum and output per query.
#include <cmath>

#include "kernels/base/strided.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

namespace tmamba {

namespace {

// Fewer queries than this read the keys as they stand: a decoded token would otherwise copy its whole past.
constexpr int64_t kQueriesToPack = 16;

template <class A>
struct Forward {
  Cubes<A> o;
  Planes<A> lse;
  Cubes<const A> q, k, v;
  int64_t B, H, D, q_begin;
  double scale;
  TileGrid key_grid;
  // Every tile of keys, as columns, and of values: [B, H, tiles, 2, kKeyTile * D]. Null where there are too few queries
  // for this to pay.
  A* packed = nullptr;

  int64_t tile_size() const { return kKeyTile * D; }
  A* keys(int64_t b, int64_t h, int64_t tile) const {
    return packed + ((b * H + h) * key_grid.count + tile) * 2 * tile_size();
  }
  A* values(int64_t b, int64_t h, int64_t tile) const { return keys(b, h, tile) + tile_size(); }

  // The right-hand sides [D, keys] of the scores and [keys, D] of the outputs.
  Matrix<A> key_operand(int64_t b, int64_t h, int64_t tile) const {
    if (packed == nullptr) return transposed(k.at(b, key_grid[tile].begin, h), k.t);
    return {keys(b, h, tile), kKeyTile};
  }
  Matrix<A> value_operand(int64_t b, int64_t h, int64_t tile) const {
    if (packed == nullptr) return {v.at(b, key_grid[tile].begin, h), v.t};
    return {values(b, h, tile), D};
  }
};

template <class A>
void pack_keys_and_values(const Forward<A>& f) {
  const int64_t tiles = f.key_grid.count;
  parallel_tasks(f.B * f.H * tiles, [&](int64_t task) {
    const int64_t tile = task % tiles, b = task / tiles / f.H, h = task / tiles % f.H;
    const TileRange keys = f.key_grid[tile];
    pack_columns(f.keys(b, h, tile), f.k.at(b, keys.begin, h), f.k.t, keys.count(), f.D);
    pack_rows(f.values(b, h, tile), f.v.at(b, keys.begin, h), f.v.t, keys.count(), f.D);
  });
}

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
  A* scores = frame.take<A>(M * kKeyTile);
  A* out = frame.take<A>(M * D);
  A* sum = frame.take_zeros<A>(M);
  A* maximum = frame.take<A>(M);
  std::fill_n(maximum, M, -std::numeric_limits<A>::infinity());
  const TileGrid grid(0, queries.end, kKeyTile);
  for (int64_t j = 0; j < grid.count; ++j) {
    const TileRange keys = grid[j];
    gemm(M, keys.count(), D, f.scale, {f.q.at(b, first, h), f.q.t}, f.key_operand(b, h, j), 0.0, scores, kKeyTile);
    for (int64_t i = 0; i < M; ++i) {
      const A keep =
          softmax_row(scores + i * kKeyTile, visible_keys(queries.begin + i, keys), keys.count(), maximum[i], sum[i]);
      if (j == 0) continue;
      A* row = out + i * D;
      for (int64_t c = 0; c < D; ++c) row[c] *= keep;
    }
    gemm(M, D, keys.count(), 1.0, {scores, kKeyTile}, f.value_operand(b, h, j), j == 0 ? 0.0 : 1.0, out, D);
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
  check_args(Device::cpu, args);
  if (B * T * H * D == 0) return;
  dispatch_float(args.q_BTHD.dtype(), [&]<class A>() {
    Forward<A> f{.o = cubes<A>(args.o_BTHD),
                 .lse = planes<A>(args.lse_BTH),
                 .q = cubes<A>(args.q_BTHD),
                 .k = cubes<A>(args.k_BSHD),
                 .v = cubes<A>(args.v_BSHD),
                 .B = B,
                 .H = H,
                 .D = D,
                 .q_begin = args.q_begin,
                 .scale = args.scale,
                 .key_grid = TileGrid(0, args.q_begin + T, kKeyTile)};
    ScratchFrame frame;
    if (T >= kQueriesToPack) {
      f.packed = frame.take<A>(B * H * f.key_grid.count * 2 * f.tile_size());
      pack_keys_and_values(f);
    }
    const TileGrid grid(args.q_begin, args.q_begin + T, kQueryTile);
    // Head by head, so that a head's keys and values stay in the cache; within a head from the last tile, which sees
    // the most keys, so that the last task of all is a short one.
    parallel_tasks(B * H * grid.count, [&](int64_t task) {
      const int64_t head = task / grid.count, tile = grid.count - 1 - task % grid.count, b = head / H, h = head % H;
      forward_tile(f, b, h, grid[tile]);
    });
  });
}

}  // namespace tmamba
