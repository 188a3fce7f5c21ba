// The gradients of the chunks of the SSM scan on Hopper: what ssd_tiles_backward.cu computes (its formulas), by three
// warpgroups that need nothing of one another until the last sums: one makes dq, one dk, one dv. A block stays and
// takes chunk after chunk; the copy engine fetches the next while it computes.
//
// Sums of pairs (s, t) are not formed one by one: of dlog_a's pairs (s < j <= t),
//   sum over s of pair(s, t) = q_t . (dq_t within the chunk),  sum over t of pair(s, t) = k_s . (dk_s within the chunk)
// and the pairs s = t, which both contain, fall out of their difference.
#include "kernels/cuda/ssd_wgmma.cuh"

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
  float total;  // the chunk's decay
};

template <int D>
struct Shared {
  Stage<D> stage[kStages<D>];
  Sums sums[2];
  Barrier full[kStages<D>];
};

// All warps: has the copy engine fetch all of a chunk, but what is not `wide`. Each warp asks for some of the panels,
// as one thread alone would be late for its own work.
template <int D, bool kOutputs>
__device__ void fetch_chunk(const Args& args, Stage<D>& stage, Barrier& full, int64_t item) {
  constexpr int kPanels = D / kPanelCols, kWarps = kThreads / kWarp, kTiles = kOutputs ? 4 : 2;
  if (threadIdx.x % kWarp != 0) return;
  const SsdGradients<bf16_t>& f = args.f;
  const ChunkItem at(f.in, f.grid, f.first_head, item);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (warp == kWarps - 1) {
    fetch_bytes(&stage.decays, decays_of(f.in, f.grid, at.head, at.chunk), sizeof(ChunkDecays), full);
    full.expect(2 * D * D * 2 + static_cast<int>(sizeof(ChunkDecays)) + (f.in.wide ? kTiles * kChunk * D * 2 : 0));
    full.arrive();
  }
#pragma unroll 1
  for (int i = warp; i < 2 * kPanels; i += kWarps) {
    const int panel = i / 2;
    fetch_panel((i % 2 == 0 ? stage.state : stage.adjoint) + panel * D * kPanelCols,
                i % 2 == 0 ? args.state : args.adjoint, full, panel * kPanelCols, 0, 0, static_cast<int>(item));
  }
  if (!f.in.wide) return;
#pragma unroll 1
  for (int i = kWarps - 1 - warp; i < kTiles * kPanels; i += kWarps) {
    const int tile = i / kPanels, panel = i % kPanels;
    bf16_t* to = tile == 0 ? stage.k : tile == 1 ? stage.v : tile == 2 ? stage.q : stage.dy;
    const CUtensorMap& map = tile == 0 ? args.k : tile == 1 ? args.v : tile == 2 ? args.q : args.dy;
    fetch_panel(to + panel * kChunk * kPanelCols, map, full, panel * kPanelCols, static_cast<int>(at.h),
                static_cast<int>(at.begin), static_cast<int>(at.b));
  }
}

// All threads: what is not `wide`.
template <int D, bool kOutputs>
__device__ void copy_chunk(const SsdInputs<bf16_t>& in, Stage<D>& stage, const ChunkItem& at) {
  const auto copy = [&](bf16_t* to, const Cubes<const bf16_t>& from) {
    copy_tokens<D, kThreads>(to, from, at.b, at.h, at.begin, at.count);
  };
  copy(stage.k, in.k), copy(stage.v, in.v);
  if (kOutputs) copy(stage.q, in.q), copy(stage.dy, in.dy);
  publish_writes();
  __syncthreads();
}

// --- Parts of a warpgroup's work
// ----------------------------------------------------------------------------------------

// Sums over the columns of acc times `tile`, to `sums` at the rows.
template <int D>
__device__ void dot_rows(float* sums, const float (&acc)[D / 8][4], const bf16_t* tile) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = accumulator_row() + half * 8;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const uint32_t pair =
          *reinterpret_cast<const uint32_t*>(tile + panel_index<kChunk>(r, n * 8 + accumulator_column()));
      sum += acc[n][half * 2] * low_bf16(pair) + acc[n][half * 2 + 1] * high_bf16(pair);
    }
    sum = warp_sum<4>(sum);
    if (accumulator_column() == 0) sums[r] = sum;
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

// meanwhile(): work for while the first products run.
template <int kRole, int D, bool kOutputs, class Meanwhile>
__device__ void make_gradient(const SsdGradients<bf16_t>& f, const Stage<D>& stage, Sums& sums, const ChunkItem& place,
                              const Meanwhile& meanwhile) {
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
  meanwhile();
  if constexpr (kOutputs) {
    wait_products<1>(pair);
    const float diagonal = decay_pairs<kRole == kQuery, kRole != kValue>(pair, decays);
    if constexpr (kRole == kQuery) {
      const float skip = warp_sum(diagonal);
      if (threadIdx.x % kWarp == 0) sums.skip[threadIdx.x / kWarp] = skip;
    }
    round_factor(rounded, pair);
  }
  wait_products<0>(acc);
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = accumulator_row() + half * 8;
    factor[half] = kRole == kQuery ? decays.from_start[r] : decays.to_end[r];
    if (kRole == kKey) factor[half] *= decays.dt[r];
  }
  scale_rows(acc, factor[0], factor[1]);
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
    store_tokens<D>(f.dq, acc, place.b, place.h, place.begin, place.count, false, f.in.wide);
  } else if constexpr (kRole == kKey) {
    dot_rows<D>(sums.key, acc, own);
    store_tokens<D>(f.dk, acc, place.b, place.h, place.begin, place.count, f.accumulate_kv, f.in.wide);
  } else {
    const float skip = !kOutputs || f.in.skip_H == nullptr ? 0.0f : widen(f.in.skip_H[place.h]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = accumulator_row() + half * 8;
      const float dt = decays.dt[r];
      float sum = 0;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const int at = panel_index<kChunk>(r, n * 8 + accumulator_column());
        const uint32_t v = *reinterpret_cast<const uint32_t*>(own + at);
        const uint32_t dy = kOutputs ? *reinterpret_cast<const uint32_t*>(stage.dy + at) : 0;
        float &first = acc[n][half * 2], &second = acc[n][half * 2 + 1];
        sum += first * low_bf16(v) + second * high_bf16(v);
        first = first * dt + skip * low_bf16(dy), second = second * dt + skip * high_bf16(dy);
      }
      sum = warp_sum<4>(sum);
      if (accumulator_column() == 0 && r < place.count) f.ddt.at(place.b, place.begin + r)[place.h] = sum;
    }
    store_tokens<D>(f.dv, acc, place.b, place.h, place.begin, place.count, f.accumulate_kv, f.in.wide);
  }
}

// dlog_a and the chunk's share of dD, by one warp; lane i has tokens 2 i and 2 i + 1.
template <bool kOutputs>
__device__ void decay_gradient(const SsdGradients<bf16_t>& f, const Sums& sums, const ChunkItem& place) {
  const int lane = threadIdx.x % kWarp, j = lane * 2;
  const float passing =  // the whole chunk
      sums.total * warp_sum(lane < kThreads / kWarp ? sums.product[lane] : 0.0f);
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
  const float skip = kOutputs ? warp_sum(lane < kWarpGroup / kWarp ? sums.skip[lane] : 0.0f) : 0.0f;
  if (lane != 0) return;
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
  }
  __syncthreads();
  for (int i = 0; i < kStages<D> && first + i * step < args.items; ++i) {
    fetch_chunk<D, kOutputs>(args, shared.stage[i], shared.full[i], first + i * step);
  }
  uint32_t n = 0;
  const auto finish = [&](int64_t item, uint32_t which) {  // by one warp, behind the barrier at the item's end
    decay_gradient<kOutputs>(f, shared.sums[which % 2], ChunkItem(f.in, f.grid, f.first_head, item));
  };
  for (int64_t item = first; item < args.items; item += step, ++n) {
    const int turn = n % kStages<D>;
    Stage<D>& stage = shared.stage[turn];
    Sums& sums = shared.sums[n % 2];
    const ChunkItem place(f.in, f.grid, f.first_head, item);
    shared.full[turn].wait(n / kStages<D> % 2);
    if (!f.in.wide) copy_chunk<D, kOutputs>(f.in, stage, place);
    const auto finish_last = [&] {
      if (n > 0 && warp == static_cast<int>(n % 4)) finish(item - step, n - 1);
    };
    if (role == kQuery) {
      if (threadIdx.x == 0) sums.total = stage.decays.total;
      if constexpr (kOutputs) {
        make_gradient<kQuery, D, kOutputs>(f, stage, sums, place, finish_last);
      } else {
        finish_last();
        const float product = warp_sum(state_product(stage));
        if (threadIdx.x % kWarp == 0) sums.product[warp] = product;
      }
    } else if (role == kKey) {
      make_gradient<kKey, D, kOutputs>(f, stage, sums, place, [] {});
    } else {
      make_gradient<kValue, D, kOutputs>(f, stage, sums, place, [] {});
    }
    __syncthreads();
    const int64_t next = item + kStages<D> * step;
    if (next < args.items) fetch_chunk<D, kOutputs>(args, stage, shared.full[turn], next);
  }
  if (n > 0 && warp == 0) finish(first + (n - 1) * step, n - 1);
#endif
}

template <int D>
void run(cudaStream_t stream, const SsdGradients<bf16_t>& f) {
  const SsdInputs<bf16_t>& in = f.in;
  const int64_t items = f.head_count * f.grid.chunks;
  const Args args{f,
                  items,
                  token_map<D>(in, in.q),
                  token_map<D>(in, in.k),
                  token_map<D>(in, in.v),
                  token_map<D>(in, in.dy),
                  state_map<D>(f.states, items),
                  state_map<D>(f.adjoints, items)};
  const bool outputs = in.q.data != nullptr;
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
