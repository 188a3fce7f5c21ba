// The gradients of the chunks of the SSM scan on Hopper: what ssd_tiles_backward.cu computes (its formulas), by three
// warpgroups that need nothing of one another until the last sums: one makes dq, one dk, one dv. A block stays and
// takes chunk after chunk; the copy engine fetches the next while it computes.
//
// Sums of pairs (s, t) are not formed one by one: of dlog_a's pairs (s < j <= t),
//   sum over s of pair(s, t) = q_t . (dq_t within the chunk),  sum over t of pair(s, t) = k_s . (dk_s within the chunk)
// and the pairs s = t, which both contain, fall out of their difference.
#include "kernels/cuda/ssd_tiles.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace tmamba::cuda {

namespace {

enum Role { kQuery, kKey, kValue, kRoles };  // whose gradient a warpgroup makes
constexpr int kThreads = kRoles * kWarpGroup;

// Chunks under way at once, as far as shared memory goes.
template <int D>
constexpr int kStages = D == 128 ? 1 : 2;

struct Args {
  SsdGradients<bf16_t> f;
  int64_t items;  // chunks of all heads at once
  CUtensorMap q, k, v, dy, state, adjoint;
};

template <int D>
struct Stage {
  alignas(kPanelAlign) bf16_t q[kChunk * D];
  alignas(kPanelAlign) bf16_t k[kChunk * D];
  alignas(kPanelAlign) bf16_t v[kChunk * D];
  alignas(kPanelAlign) bf16_t dy[kChunk * D];
  alignas(kPanelAlign) bf16_t state[D * D];
  alignas(kPanelAlign) bf16_t adjoint[D * D];
  ChunkDecays decays;
};

// What the warpgroups leave for dlog_a and dD.
struct Sums {
  float query[kChunk];    // q_t . dq_t
  float key[kChunk];      // k_s . dk_s
  float through[kChunk];  // the part of it through the adjoint
  float product[kThreads / kWarp], skip[kWarpGroup / kWarp];
};

template <int D>
struct Shared {
  Stage<D> stage[kStages<D>];
  Sums sums[2];
  Barrier full[kStages<D>];
};

struct Place {
  int64_t chunk, slot, head, b, h, begin;
  int count;
  __device__ Place(const SsdGradients<bf16_t>& f, int64_t item) {
    const DivMod at(item, f.grid.chunks);
    slot = at.quotient, chunk = at.remainder, head = f.first_head + slot;
    const DivMod sequence(head, f.in.H);
    b = sequence.quotient, h = sequence.remainder, begin = chunk * kChunk;
    count = static_cast<int>(f.in.T - begin < kChunk ? f.in.T - begin : kChunk);
  }
};

// One thread: has the copy engine fetch all of a chunk, but what is not `wide`.
template <int D, bool kOutputs>
__device__ void fetch_chunk(const Args& args, Stage<D>& stage, Barrier& full, int64_t item) {
  const SsdGradients<bf16_t>& f = args.f;
  const Place place(f, item);
  const bool wide = f.in.wide;
  constexpr int kTiles = kOutputs ? 4 : 2;
  full.expect(2 * D * D * 2 + static_cast<int>(sizeof(ChunkDecays)) + (wide ? kTiles * kChunk * D * 2 : 0));
  const auto tile = [&]<int kRows>(bf16_t* to, const CUtensorMap& map, int64_t b, int64_t h, int64_t row) {
    fetch_tile<kRows, D>(to, map, {}, full, b, h, row, 0, true);
  };
  if (wide) {
    tile.template operator()<kChunk>(stage.k, args.k, place.b, place.h, place.begin);
    tile.template operator()<kChunk>(stage.v, args.v, place.b, place.h, place.begin);
    if (kOutputs) {
      tile.template operator()<kChunk>(stage.q, args.q, place.b, place.h, place.begin);
      tile.template operator()<kChunk>(stage.dy, args.dy, place.b, place.h, place.begin);
    }
  }
  tile.template operator()<D>(stage.state, args.state, item, 0, 0);
  tile.template operator()<D>(stage.adjoint, args.adjoint, item, 0, 0);
  fetch_bytes(&stage.decays, decays_of(f.in, f.grid, place.head, place.chunk), sizeof(ChunkDecays), full);
  full.arrive();
}

// All threads: what is not `wide`.
template <int D, bool kOutputs>
__device__ void copy_chunk(const Args& args, Stage<D>& stage, const Place& place) {
  const auto tile = [&](bf16_t* to, const Cubes<const bf16_t>& from) {
    for (int i = threadIdx.x; i < kChunk * D; i += kThreads) {
      const int row = i / D, col = i % D;
      to[panel_index<kChunk>(row, col)] =
          row < place.count ? from.at(place.b, place.begin + row, place.h)[col] : bf16_t{};
    }
  };
  tile(stage.k, args.f.in.k), tile(stage.v, args.f.in.v);
  if (kOutputs) tile(stage.q, args.f.in.q), tile(stage.dy, args.f.in.dy);
  publish_writes();
  __syncthreads();
}

// --- Parts of a warpgroup's work. Its thread holds rows row() and row() + 8, columns 8 n + column() and the next.
// --------

[[maybe_unused]] __device__ inline int row() { return threadIdx.x % kWarpGroup / kWarp * 16 + threadIdx.x % kWarp / 4; }
[[maybe_unused]] __device__ inline int column() { return threadIdx.x % 4 * 2; }

// (first_r . second_c) of a chunk's rows in, the factor of the intra-chunk product out: times exp(c_t - c_s) where the
// later token t is the row's (queries) or the column's, and 0 where t < s; for dq and dk times dt_s.
// Returns the thread's share of the sum over the diagonal as it came in.
template <int kRole>
__device__ float decay_pairs(float (&pair)[kChunk / 8][4], const ChunkDecays& decays) {
  float high[2], low[2], dt[2], diagonal = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row() + half * 8;
    high[half] = decays.high[r], low[half] = decays.low[r], dt[half] = decays.dt[r];
  }
#pragma unroll
  for (int n = 0; n < kChunk / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int r = row() + e / 2 * 8, c = n * 8 + column() + e % 2;
      const float difference = (high[e / 2] - decays.high[c]) + (low[e / 2] - decays.low[c]);
      float& x = pair[n][e];
      if (r == c) diagonal += x;
      const float decay = exp_of<bf16_t>(kRole == kQuery ? difference : -difference);
      const float weight = kRole == kQuery ? decay * decays.dt[c] : kRole == kKey ? decay * dt[e / 2] : decay;
      const bool visible = kRole == kQuery ? c <= r : r <= c;
      x = visible ? x * weight : 0.0f;  // the weight may be infinite elsewhere
    }
  }
  return diagonal;
}

// Sums over the columns of acc times `tile`, to `sums` at the rows.
template <int D>
__device__ void dot_rows(float* sums, const float (&acc)[D / 8][4], const bf16_t* tile) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row() + half * 8;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(tile + panel_index<kChunk>(r, n * 8 + column()));
      sum += acc[n][half * 2] * low_bf16(pair) + acc[n][half * 2 + 1] * high_bf16(pair);
    }
    sum = warp_sum<4>(sum);
    if (column() == 0) sums[r] = sum;
  }
}

// words[n] of four neighbouring lanes: lane i then holds words[i] of lanes 0 .. 3.
[[maybe_unused]] __device__ inline void transpose_quad(uint32_t (&words)[4]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      uint32_t &low = words[i], &high = words[i + step];
      const uint32_t received = __shfl_xor_sync(0xFFFFFFFFu, upper ? low : high, step);
      (upper ? low : high) = received;
    }
  }
}

// Writes a warpgroup's gradient, or adds it.
template <int D>
__device__ void store_rows(const Cubes<bf16_t>& to, const float (&acc)[D / 8][4], const Place& place, bool adds,
                           bool wide) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int t = row() + half * 8;
    const bool here = t < place.count;
    bf16_t* out = to.at(place.b, place.begin + (here ? t : 0), place.h);
    if (wide && !adds) {
#pragma unroll
      for (int n = 0; n < D / 8; n += 4) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = pack_bf16(acc[n + i][half * 2], acc[n + i][half * 2 + 1]);
        transpose_quad(words);
        if (here) {
          *reinterpret_cast<uint4*>(out + (n + threadIdx.x % 4) * 8) = {words[0], words[1], words[2], words[3]};
        }
      }
      continue;
    }
    if (!here) continue;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      float first = 0, second = 0;
      if (adds) load_pair(out + n * 8 + column(), first, second, wide);
      store_pair(out + n * 8 + column(), first + acc[n][half * 2], second + acc[n][half * 2 + 1], wide);
    }
  }
}

// <S, G>: each thread's share.
template <int D>
__device__ float state_product(const Stage<D>& stage) {
  float sum = 0;
#pragma unroll
  for (int i = threadIdx.x * 8; i < D * D; i += kThreads * 8) {
    const auto state = *reinterpret_cast<const Raw<bf16_t>*>(stage.state + i);
    const auto adjoint = *reinterpret_cast<const Raw<bf16_t>*>(stage.adjoint + i);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += state[e] * adjoint[e];
  }
  return sum;
}

// --- One warpgroup's gradient of one chunk
// ------------------------------------------------------------------------------

template <int kRole, int D, bool kOutputs>
__device__ void make_gradient(const SsdGradients<bf16_t>& f, const Stage<D>& stage, Sums& sums, const Place& place) {
  const bf16_t* own = kRole == kQuery ? stage.q : kRole == kKey ? stage.k : stage.v;
  const ChunkDecays& decays = stage.decays;
  using Tokens = Factor<true, kChunk>;
  // Pairs: (dy_t . v_s), its transpose, or (k_s . q_t).
  const Tokens left(kRole == kQuery ? stage.dy : kRole == kKey ? stage.v : stage.k);
  const Tokens right(kRole == kQuery ? stage.v : kRole == kKey ? stage.dy : stage.q);
  float acc[D / 8][4] = {}, pair[kChunk / 8][4] = {};
  uint32_t rounded[kChunk / 16][4];
  begin_products();
  if constexpr (kOutputs) {
    group_product<D / 16>(pair, left, right, false);
    commit_products();
  }
  // Through the states: S dy_t, G v_s or G^T k_s.
  group_product<D / 16>(acc, left, Factor<kRole != kValue, D>(kRole == kQuery ? stage.state : stage.adjoint), false);
  commit_products();
  const float product = warp_sum(state_product(stage));
  if (threadIdx.x % kWarp == 0) sums.product[threadIdx.x / kWarp] = product;
  if constexpr (kOutputs) {
    wait_products<1>(pair);
    const float diagonal = decay_pairs<kRole>(pair, decays);
    if constexpr (kRole == kQuery) {
      const float skip = warp_sum(diagonal);
      if (threadIdx.x % kWarp == 0) sums.skip[threadIdx.x / kWarp] = skip;
    }
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        rounded[k][e] = pack_bf16(pair[2 * k + e / 2][e % 2 * 2], pair[2 * k + e / 2][e % 2 * 2 + 1]);
      }
    }
  }
  wait_products<0>(acc);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row() + half * 8;
    float factor = kRole == kQuery ? decays.from_start[r] : decays.to_end[r];
    if (kRole == kKey) factor *= decays.dt[r];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) acc[n][half * 2] *= factor, acc[n][half * 2 + 1] *= factor;
  }
  if constexpr (kRole == kKey) dot_rows<D>(sums.through, acc, own);
  if constexpr (kOutputs) {
    begin_products();
    group_product(acc, rounded,
                  Factor<false, kChunk>(kRole == kQuery ? stage.k
                                        : kRole == kKey ? stage.q
                                                        : stage.dy),
                  true);
    commit_products();
    wait_products<0>(acc);
  }
  if constexpr (kRole == kQuery) {
    dot_rows<D>(sums.query, acc, own);
    store_rows<D>(f.dq, acc, place, false, f.in.wide);
  } else if constexpr (kRole == kKey) {
    dot_rows<D>(sums.key, acc, own);
    store_rows<D>(f.dk, acc, place, f.accumulate_kv, f.in.wide);
  } else {
    const float skip = !kOutputs || f.in.skip_H == nullptr ? 0.0f : widen(f.in.skip_H[place.h]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row() + half * 8;
      const float dt = decays.dt[r];
      float sum = 0;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const int at = panel_index<kChunk>(r, n * 8 + column());
        const uint32_t v = *reinterpret_cast<const uint32_t*>(own + at);
        const uint32_t dy = kOutputs ? *reinterpret_cast<const uint32_t*>(stage.dy + at) : 0;
        float &first = acc[n][half * 2], &second = acc[n][half * 2 + 1];
        sum += first * low_bf16(v) + second * high_bf16(v);
        first = first * dt + skip * low_bf16(dy), second = second * dt + skip * high_bf16(dy);
      }
      sum = warp_sum<4>(sum);
      if (column() == 0 && r < place.count) f.ddt.at(place.b, place.begin + r)[place.h] = sum;
    }
    store_rows<D>(f.dv, acc, place, f.accumulate_kv, f.in.wide);
  }
}

// dlog_a and the chunk's share of dD, by one warp; lane i has tokens 2 i and 2 i + 1.
template <bool kOutputs>
__device__ void decay_gradient(const SsdGradients<bf16_t>& f, const Sums& sums, const Place& place, float total) {
  const int lane = threadIdx.x % kWarp, j = lane * 2;
  float passing = 0;  // what passes the whole chunk
  for (float product : sums.product) passing += product;
  passing *= total;
  const float key[2] = {sums.through[j], sums.through[j + 1]};
  float before = key[0] + key[1];
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const float other = __shfl_up_sync(0xFFFFFFFFu, before, step);
    if (lane >= step) before += other;
  }
  before = __shfl_up_sync(0xFFFFFFFFu, before, 1);
  if (lane == 0) before = 0;
  float late[2] = {}, behind = 0;
  if (kOutputs) {
    for (int e = 0; e < 2; ++e) late[e] = sums.query[j + e] - (sums.key[j + e] - key[e]);
    behind = late[0] + late[1];
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const float other = __shfl_down_sync(0xFFFFFFFFu, behind, step);
      if (lane + step < kWarp) behind += other;
    }
    behind = __shfl_down_sync(0xFFFFFFFFu, behind, 1);
    if (lane == kWarp - 1) behind = 0;
  }
  const float out[2] = {passing + before + (late[0] + (late[1] + behind)),
                        passing + before + key[0] + (late[1] + behind)};
  for (int e = 0; e < 2; ++e) {
    if (j + e < place.count) f.dlog_a.at(place.b, place.begin + j + e)[place.h] = out[e];
  }
  if (lane != 0) return;
  float skip = 0;
  if (kOutputs) {
    for (float share : sums.skip) skip += share;
  }
  f.skip_partial[place.head * f.grid.chunks + place.chunk] = skip;
}

template <int D, bool kOutputs>
__global__ void __launch_bounds__(kThreads, 1) gradient_kernel(const __grid_constant__ Args args) {
#if TMAMBA_HAS_WGMMA
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(shared_bytes);
  const SsdGradients<bf16_t>& f = args.f;
  const int role = threadIdx.x / kWarpGroup, warp = threadIdx.x / kWarp;
  const int64_t first = blockIdx.x, step = gridDim.x;
  if (threadIdx.x == 0) {
    for (Barrier& full : shared.full) full.init(1);
    publish_barriers();
    for (int i = 0; i < kStages<D>; ++i) {
      if (first + i * step < args.items) {
        fetch_chunk<D, kOutputs>(args, shared.stage[i], shared.full[i], first + i * step);
      }
    }
  }
  __syncthreads();
  uint32_t n = 0;
  for (int64_t item = first; item < args.items; item += step, ++n) {
    const int turn = n % kStages<D>;
    Stage<D>& stage = shared.stage[turn];
    Sums& sums = shared.sums[n % 2];
    const Place place(f, item);
    shared.full[turn].wait(n / kStages<D> % 2);
    if (!f.in.wide) copy_chunk<D, kOutputs>(args, stage, place);
    if (role == kQuery) {
      if constexpr (kOutputs) {
        make_gradient<kQuery, D, kOutputs>(f, stage, sums, place);
      } else {
        const float product = warp_sum(state_product(stage));
        if (threadIdx.x % kWarp == 0) sums.product[warp] = product;
      }
    } else if (role == kKey) {
      make_gradient<kKey, D, kOutputs>(f, stage, sums, place);
    } else {
      make_gradient<kValue, D, kOutputs>(f, stage, sums, place);
    }
    const float total = stage.decays.total;
    __syncthreads();
    const int64_t next = item + kStages<D> * step;
    if (threadIdx.x == 0 && next < args.items) fetch_chunk<D, kOutputs>(args, stage, shared.full[turn], next);
    if (warp == static_cast<int>(1 + n % (kThreads / kWarp - 1))) decay_gradient<kOutputs>(f, sums, place, total);
  }
#endif
}

template <int D>
void run(cudaStream_t stream, const SsdGradients<bf16_t>& f) {
  Args args{f, f.head_count * f.grid.chunks, {}, {}, {}, {}, {}, {}};
  const SsdInputs<bf16_t>& in = f.in;
  const bool outputs = in.q.data != nullptr;
  const auto tokens = [&](const Cubes<const bf16_t>& x) { return panel_map(x, in.B, in.T, in.H, D, kChunk); };
  const auto states = [&](const void* x) {
    return panel_map({static_cast<const bf16_t*>(x), D * D, D, D}, args.items, D, 1, D, D);
  };
  if (in.wide) args.k = tokens(in.k), args.v = tokens(in.v);
  if (in.wide && outputs) args.q = tokens(in.q), args.dy = tokens(in.dy);
  args.state = states(f.states), args.adjoint = states(f.adjoints);
  int device = 0, multiprocessors = 0;
  TM_CUDA(cudaGetDevice(&device));
  TM_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  launch(stream, {std::min<int64_t>(args.items, multiprocessors)}, kThreads, sizeof(Shared<D>),
         outputs ? gradient_kernel<D, true> : gradient_kernel<D, false>, args);
}

}  // namespace

void ssd_wgmma_gradients(cudaStream_t stream, const SsdGradients<bf16_t>& f) {
  if (f.in.D == 64) return run<64>(stream, f);
  if (f.in.D == 96) return run<96>(stream, f);
  run<128>(stream, f);
}

}  // namespace tmamba::cuda
