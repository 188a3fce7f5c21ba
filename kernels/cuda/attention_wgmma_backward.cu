// Attention backward on Hopper, without atomics: one kernel owns keys and walks the queries that see them (dk, dv),
// another owns queries and walks the keys they see (dq). Both compute the probabilities again from lse.
//   p = exp(q . k scale - lse);  dp = do . v;  ds = p (dp - do . o)
//   dv = p^T do;  dk = scale ds^T q;  dq = scale ds k
// While the tensor cores turn one tile into gradients, each warpgroup computes p and ds of the next.
#include <limits>

#include "kernels/cuda/attention_wgmma.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kStages = 3;
constexpr int kQueries = 64;  // of a tile of the walk over queries
template <int D>
constexpr int kKeys = D == 64   ? 128
                      : D == 96 ? 96
                                : 64;  // of a tile of the walk over keys

struct Args {
  AttentionBackwardViews<bf16_t> f;
  BlockOrder order;
  // [B * H, pitch]: lse in units of log 2 (infinite for rows beyond T) and do . o (0 there).
  float *lse, *delta;
  int64_t pitch;
  CUtensorMap q, d_o, k, v;
};

// --- lse and do . o, by heads
// -----------------------------------------------------------------------------------------

constexpr int kRowLanes = 16, kRowThreads = 256;  // 16 lanes per query and head, heads side by side

__global__ void __launch_bounds__(kRowThreads) row_terms_kernel(Args args) {
  const AttentionBackwardViews<bf16_t>& f = args.f;
  const AttentionSizes& s = f.size;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kRowThreads / kRowLanes) + threadIdx.x / kRowLanes;
  if (i >= s.B * args.pitch * s.H) return;  // whole warps: pitch is even
  const DivMod head(i, s.H), token(head.quotient, args.pitch);
  const int64_t b = token.quotient, t = token.remainder, h = head.remainder;
  const int64_t c = threadIdx.x % kRowLanes * 8;
  float sum = 0;
  if (t < s.T && c < s.D) {
    const auto d_o = load(f.d_o.at(b, t, h) + c, 8, s.wide), o = load(f.o.at(b, t, h) + c, 8, s.wide);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += d_o[e] * o[e];
  }
  sum = warp_sum<kRowLanes>(sum);
  if (c != 0) return;
  const int64_t place = (b * s.H + h) * args.pitch + t;
  args.delta[place] = sum;
  args.lse[place] = t < s.T ? f.lse.at(b, t)[h] * kLog2e : std::numeric_limits<float>::infinity();
}

// --- Both walks
// -------------------------------------------------------------------------------------------------------

// The thread's first row within the block.
[[maybe_unused]] __device__ inline int first_row() {
  return (static_cast<int>(threadIdx.x) / kWarpGroup - 1) * kGroupRows + accumulator_row();
}

// Scores in, probabilities out. lse(n, e); masked(column, half) says what the thread's row g + 8 half does not see.
template <int kN, class Lse, class Masked>
__device__ inline void probabilities(float (&score)[kN][4], float scale, bool masks, const Lse& lse,
                                     const Masked& masked) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) score[n][e] = exp2_approx(score[n][e] * scale - lse(n, e));
  }
  if (!masks) return;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (masked(n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2, e / 2)) score[n][e] = 0;
    }
  }
}

// Runs a warpgroup over its tiles. scores(j) begins the products that give p and dp of a tile, one group each;
// p(j, wait) and ds(j, wait) call wait() before they read them; pack() rounds both; gradients(j) begins the products
// with them, and done(j, wait) ends the tile.
template <bool kOverlaps, class Scores, class P, class Ds, class Pack, class Gradients, class Done>
__device__ inline void walk_tiles(int64_t tiles, const Scores& scores, const P& p, const Ds& ds, const Pack& round,
                                  const Gradients& gradients, const Done& done) {
  if constexpr (!kOverlaps) {
    for (int64_t j = 0; j < tiles; ++j) {
      scores(j);
      p.template operator()<1>(j), ds.template operator()<0>(j), round();
      gradients(j);
      done(j);
    }
    return;
  }
  scores(0);
  p.template operator()<1>(0), ds.template operator()<0>(0), round();
  for (int64_t j = 1; j < tiles; ++j) {
    scores(j);
    gradients(j - 1);
    p.template operator()<2>(j), ds.template operator()<1>(j);
    done(j - 1), round();
  }
  gradients(tiles - 1);
  done(tiles - 1);
}

// --- Keys: dk and dv
// --------------------------------------------------------------------------------------------------

template <int D>
struct KeyShared {
  alignas(kPanelAlign) bf16_t k[kBlockRows * D];
  alignas(kPanelAlign) bf16_t v[kBlockRows * D];
  alignas(kPanelAlign) bf16_t q[kStages][kQueries * D];
  alignas(kPanelAlign) bf16_t d_o[kStages][kQueries * D];
  alignas(16) float lse[kStages][kQueries], delta[kStages][kQueries];
  Barrier own_full;
  Ring<kStages> ring;
};

// A block's keys [first, key_end) and the queries from `begin` on that see them.
struct KeySpan {
  BlockPlace place;
  int64_t first, key_end, begin, tiles;
  __device__ explicit KeySpan(const Args& args) : place(args.order, args.f.size.H) {
    const AttentionSizes& s = args.f.size;
    first = place.tile * kBlockRows, key_end = s.q_begin + s.T;
    begin = first > s.q_begin ? (first - s.q_begin) / kQueries * kQueries : 0;
    tiles = (s.T - begin + kQueries - 1) / kQueries;
  }
};

template <int D>
__device__ void fetch_queries(const Args& args, KeyShared<D>& shared, const KeySpan& span) {
  const AttentionBackwardViews<bf16_t>& f = args.f;
  const bool wide = f.size.wide, first = threadIdx.x == 0;
  if (wide && !first) return;
  const int64_t b = span.place.b, h = span.place.h;
  if (wide) shared.own_full.expect(2 * kBlockRows * D * 2);
  fetch_tile<kBlockRows, D>(shared.k, args.k, f.k, shared.own_full, b, h, span.first, span.key_end, wide);
  fetch_tile<kBlockRows, D>(shared.v, args.v, f.v, shared.own_full, b, h, span.first, span.key_end, wide);
  shared.own_full.arrive();
  for (int64_t j = 0; j < span.tiles; ++j) {
    const Turn<kStages> turn(j);
    Barrier& full = shared.ring.full[turn.stage];
    const int64_t query = span.begin + j * kQueries, terms = span.place.bh * args.pitch + query;
    shared.ring.empty[turn.stage].wait(turn.parity ^ 1);
    if (first) {
      constexpr int kTermBytes = kQueries * 4;
      full.expect(2 * kTermBytes + (wide ? 2 * kQueries * D * 2 : 0));
      fetch_bytes(shared.lse[turn.stage], args.lse + terms, kTermBytes, full);
      fetch_bytes(shared.delta[turn.stage], args.delta + terms, kTermBytes, full);
    }
    fetch_tile<kQueries, D>(shared.q[turn.stage], args.q, f.q, full, b, h, query, f.size.T, wide);
    fetch_tile<kQueries, D>(shared.d_o[turn.stage], args.d_o, f.d_o, full, b, h, query, f.size.T, wide);
    full.arrive();
  }
}

// Adds a warpgroup's rows of a gradient to a tensor.
template <int D>
__device__ void add_rows(const Cubes<bf16_t>& to, const float (&acc)[D / 8][4], const KeySpan& span, float scale,
                         bool wide) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = span.first + first_row() + half * 8;
    if (row >= span.key_end) continue;
    bf16_t* out = to.at(span.place.b, row, span.place.h) + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      float low, high;
      load_pair(out + n * 8, low, high, wide);
      store_pair(out + n * 8, low + acc[n][half * 2] * scale, high + acc[n][half * 2 + 1] * scale, wide);
    }
  }
}

template <int D>
__device__ void compute_keys(const Args& args, KeyShared<D>& shared, const KeySpan& span) {
  constexpr int kN = kQueries / 8;
  const AttentionSizes& s = args.f.size;
  const int group_row = (static_cast<int>(threadIdx.x) / kWarpGroup - 1) * kGroupRows;
  const float scale = static_cast<float>(s.scale) * kLog2e;
  const Factor<true, kBlockRows> k(shared.k, group_row), v(shared.v, group_row);
  // Rows are keys, columns queries: p^T and ds^T come out as left factors of dv and dk.
  float dk[D / 8][4] = {}, dv[D / 8][4] = {}, p[kN][4] = {}, ds[kN][4] = {};
  uint32_t p_rounded[kN / 2][4], ds_rounded[kN / 2][4];
  const int64_t hidden = span.first + first_row() - s.q_begin - span.begin;  // queries that do not see the first row
  const auto columns = [](const float(&terms)[kStages][kQueries], int64_t j, int n, int e) {
    return terms[Turn<kStages>(j).stage][n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2];
  };
  const auto begin_scores = [&](int64_t j) {
    const Turn<kStages> turn(j);
    shared.ring.full[turn.stage].wait(turn.parity);
    begin_products();
    group_product<D / 16>(p, k, Factor<true, kQueries>(shared.q[turn.stage]), false);
    commit_products();
    group_product<D / 16>(ds, v, Factor<true, kQueries>(shared.d_o[turn.stage]), false);
    commit_products();
  };
  const auto begin_gradients = [&](int64_t j) {
    const int stage = Turn<kStages>(j).stage;
    begin_products();
    group_product(dv, p_rounded, Factor<false, kQueries>(shared.d_o[stage]), true);
    group_product(dk, ds_rounded, Factor<false, kQueries>(shared.q[stage]), true);
    commit_products();
  };
  const auto make_p = [&]<int kPending>(int64_t j) {
    wait_products<kPending>(p);
    const int64_t left = hidden - j * kQueries;
    const int limit = left > kQueries ? kQueries : static_cast<int>(left);
    probabilities(
        p, scale, left > -8, [&](int n, int e) { return columns(shared.lse, j, n, e); },
        [&](int column, int half) { return column < limit + half * 8; });
  };
  const auto make_ds = [&]<int kPending>(int64_t j) {
    wait_products<kPending>(ds);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - columns(shared.delta, j, n, e));
    }
  };
  const auto round = [&] { round_factor(p_rounded, p), round_factor(ds_rounded, ds); };
  const auto end_gradients = [&](int64_t j) {
    wait_products<0>(dk, dv);
    leave(shared.ring.empty[Turn<kStages>(j).stage]);
  };
  shared.own_full.wait(0);
  walk_tiles<D <= 96>(span.tiles, begin_scores, make_p, make_ds, round, begin_gradients, end_gradients);
  add_rows<D>(args.f.dk, dk, span, static_cast<float>(s.scale), s.wide);
  add_rows<D>(args.f.dv, dv, span, 1.0f, s.wide);
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads, 1) key_gradient_kernel(const __grid_constant__ Args args) {
#if TMAMBA_HAS_WGMMA
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  KeyShared<D>& shared = *reinterpret_cast<KeyShared<D>*>(shared_bytes);
  if (threadIdx.x == 0) {
    const int arrivals = args.f.size.wide ? 1 : kWarpGroup;
    shared.own_full.init(arrivals), shared.ring.init(arrivals);
    publish_barriers();
  }
  __syncthreads();
  const KeySpan span(args);
  if (threadIdx.x < kWarpGroup) {
    keep_registers<kFetchRegisters>();
    fetch_queries(args, shared, span);
  } else {
    take_registers<kComputeRegisters>();
    compute_keys(args, shared, span);
  }
#endif
}

// --- Queries: dq
// ------------------------------------------------------------------------------------------------------

template <int D>
struct QueryShared {
  alignas(kPanelAlign) bf16_t q[kBlockRows * D];
  alignas(kPanelAlign) bf16_t d_o[kBlockRows * D];
  alignas(kPanelAlign) bf16_t k[kStages][kKeys<D> * D];
  alignas(kPanelAlign) bf16_t v[kStages][kKeys<D> * D];
  Barrier own_full;
  Ring<kStages> ring;
};

// A block's queries [first, last) and the keys [0, key_end) that they see.
template <int D>
struct QuerySpan {
  BlockPlace place;
  int64_t first, last, key_end, tiles;
  __device__ explicit QuerySpan(const Args& args) : place(args.order, args.f.size.H) {
    const AttentionSizes& s = args.f.size;
    first = (args.order.tiles - 1 - place.tile) * kBlockRows;
    last = first + kBlockRows < s.T ? first + kBlockRows : s.T;
    key_end = s.q_begin + last, tiles = (key_end + kKeys<D> - 1) / kKeys<D>;
  }
};

template <int D>
__device__ void fetch_keys(const Args& args, QueryShared<D>& shared, const QuerySpan<D>& span) {
  const AttentionBackwardViews<bf16_t>& f = args.f;
  const bool wide = f.size.wide;
  if (wide && threadIdx.x != 0) return;
  const int64_t b = span.place.b, h = span.place.h;
  if (wide) shared.own_full.expect(2 * kBlockRows * D * 2);
  fetch_tile<kBlockRows, D>(shared.q, args.q, f.q, shared.own_full, b, h, span.first, span.last, wide);
  fetch_tile<kBlockRows, D>(shared.d_o, args.d_o, f.d_o, shared.own_full, b, h, span.first, span.last, wide);
  shared.own_full.arrive();
  for (int64_t j = 0; j < span.tiles; ++j) {
    const Turn<kStages> turn(j);
    Barrier& full = shared.ring.full[turn.stage];
    shared.ring.empty[turn.stage].wait(turn.parity ^ 1);
    if (wide) full.expect(2 * kKeys<D> * D * 2);
    fetch_tile<kKeys<D>, D>(shared.k[turn.stage], args.k, f.k, full, b, h, j * kKeys<D>, span.key_end, wide);
    fetch_tile<kKeys<D>, D>(shared.v[turn.stage], args.v, f.v, full, b, h, j * kKeys<D>, span.key_end, wide);
    full.arrive();
  }
}

template <int D>
__device__ void compute_queries(const Args& args, QueryShared<D>& shared, const QuerySpan<D>& span) {
  constexpr int kN = kKeys<D> / 8;
  const AttentionSizes& s = args.f.size;
  const int group_row = (static_cast<int>(threadIdx.x) / kWarpGroup - 1) * kGroupRows;
  const float scale = static_cast<float>(s.scale) * kLog2e, out_scale = static_cast<float>(s.scale);
  const Factor<true, kBlockRows> q(shared.q, group_row), d_o(shared.d_o, group_row);
  const int64_t query = span.first + first_row();
  float dq[D / 8][4] = {}, p[kN][4] = {}, ds[kN][4] = {}, lse[2], delta[2];
  uint32_t ds_rounded[kN / 2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t t = query + half * 8, place = span.place.bh * args.pitch + t;
    lse[half] = t < s.T ? args.lse[place] : std::numeric_limits<float>::infinity();
    delta[half] = t < s.T ? args.delta[place] : 0.0f;
  }
  const auto begin_scores = [&](int64_t j) {
    const Turn<kStages> turn(j);
    shared.ring.full[turn.stage].wait(turn.parity);
    begin_products();
    group_product<D / 16>(p, q, Factor<true, kKeys<D>>(shared.k[turn.stage]), false);
    commit_products();
    group_product<D / 16>(ds, d_o, Factor<true, kKeys<D>>(shared.v[turn.stage]), false);
    commit_products();
  };
  const auto begin_gradients = [&](int64_t j) {
    begin_products();
    group_product(dq, ds_rounded, Factor<false, kKeys<D>>(shared.k[Turn<kStages>(j).stage]), true);
    commit_products();
  };
  const auto make_p = [&]<int kPending>(int64_t j) {
    wait_products<kPending>(p);
    const int64_t last = s.q_begin + query - j * kKeys<D>;  // the last column that the thread's first row sees
    const int limit = last < -16 ? -16 : static_cast<int>(last < kKeys<D> ? last : kKeys<D>);
    probabilities(
        p, scale, last < kKeys<D> - 1, [&](int, int e) { return lse[e / 2]; },
        [&](int column, int half) { return column > limit + half * 8; });
  };
  const auto make_ds = [&]<int kPending>(int64_t) {
    wait_products<kPending>(ds);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - delta[e / 2]);
    }
  };
  const auto round = [&] { round_factor(ds_rounded, ds); };
  const auto end_gradients = [&](int64_t j) {
    wait_products<0>(dq);
    leave(shared.ring.empty[Turn<kStages>(j).stage]);
  };
  shared.own_full.wait(0);
  walk_tiles<true>(span.tiles, begin_scores, make_p, make_ds, round, begin_gradients, end_gradients);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t t = query + half * 8;
    if (t >= s.T) continue;
    bf16_t* out = args.f.dq.at(span.place.b, t, span.place.h) + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      store_pair(out + n * 8, dq[n][half * 2] * out_scale, dq[n][half * 2 + 1] * out_scale, s.wide);
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads, 1) query_gradient_kernel(const __grid_constant__ Args args) {
#if TMAMBA_HAS_WGMMA
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  QueryShared<D>& shared = *reinterpret_cast<QueryShared<D>*>(shared_bytes);
  if (threadIdx.x == 0) {
    const int arrivals = args.f.size.wide ? 1 : kWarpGroup;
    shared.own_full.init(arrivals), shared.ring.init(arrivals);
    publish_barriers();
  }
  __syncthreads();
  const QuerySpan<D> span(args);
  if (threadIdx.x < kWarpGroup) {
    keep_registers<kFetchRegisters>();
    fetch_keys(args, shared, span);
  } else {
    take_registers<kComputeRegisters>();
    compute_queries(args, shared, span);
  }
#endif
}

int64_t pitch_of(const AttentionSizes& s) { return round_up(s.T, kQueries); }

template <int D>
void run(cudaStream_t stream, const AttentionBackwardViews<bf16_t>& f, float* terms) {
  const AttentionSizes& s = f.size;
  const int64_t pitch = pitch_of(s), rows = s.B * s.H * pitch;
  Args args{f, {}, terms, terms + rows, pitch, {}, {}, {}, {}};
  const auto maps = [&](int query_rows, int key_rows) {
    if (!s.wide) return;
    args.q = panel_map(f.q, s.B, s.T, s.H, D, query_rows);
    args.d_o = panel_map(f.d_o, s.B, s.T, s.H, D, query_rows);
    args.k = panel_map(f.k, s.B, s.keys(), s.H, D, key_rows);
    args.v = panel_map(f.v, s.B, s.keys(), s.H, D, key_rows);
  };
  launch(stream, {ceil_div(rows, kRowThreads / kRowLanes)}, kRowThreads, 0, row_terms_kernel, args);
  args.order = block_order(s, s.keys(), s.T), maps(kQueries, kBlockRows);
  launch(stream, {args.order.blocks()}, kAttentionThreads, sizeof(KeyShared<D>), key_gradient_kernel<D>, args);
  args.order = block_order(s, s.T, s.keys()), maps(kBlockRows, kKeys<D>);
  launch(stream, {args.order.blocks()}, kAttentionThreads, sizeof(QueryShared<D>), query_gradient_kernel<D>, args);
}

}  // namespace

int64_t attention_backward_terms(const AttentionSizes& s) { return 2 * s.B * s.H * pitch_of(s); }

void attention_backward_wgmma(cudaStream_t stream, const AttentionBackwardViews<bf16_t>& f, float* terms) {
  if (f.size.D == 64) return run<64>(stream, f, terms);
  if (f.size.D == 96) return run<96>(stream, f, terms);
  run<128>(stream, f, terms);
}

}  // namespace tmamba::cuda
