// The gradients of the chunks of the SSM scan on Hopper, by the formulas of ssd_tiles_backward.cu. Three warpgroups
// compute dq, dk and dv; they exchange nothing until the final sums. Blocks are persistent: each takes chunk after
// chunk, and TMA loads the next chunk while the block computes.
//
// The sums over pairs (s, t) are not formed pair by pair. For the pairs (s < j <= t) of dlog_a:
//   sum over s of pair(s, t) = q_t . (dq_t within the chunk),  sum over t of pair(s, t) = k_s . (dk_s within the chunk)
// Both contain the pairs s = t, which cancel in their difference. For that both GEMMs must round the same pair to the
// same bits, dt included.
#include "kernels/cuda/ssd/ssd_wgmma.cuh"

namespace tmamba::cuda {

namespace {

enum Role { kQuery, kKey, kValue, kRoles };  // whose gradient a warpgroup computes
constexpr int kThreads = kRoles * kWarpGroup;

// Chunks in the pipeline: as many as fit in shared memory.
template <int D>
constexpr int kStages = D == 128 ? 1 : 2;

struct Args {
  SsdGradients<bf16_t> f;
  int64_t items;  // chunks of all heads of the launch
  CUtensorMap q, k, v, dy, state, adjoint;
};

enum Tokens { kQ, kK, kV, kDy, kTokens };  // tokens[role] are a role's own

template <int D>
struct Stage {
  alignas(kPanelAlign) bf16_t tokens[kTokens][kChunk * D];
  alignas(kPanelAlign) bf16_t state[D * D];
  alignas(kPanelAlign) bf16_t adjoint[D * D];
  ChunkDecays decays;
};

// Partial sums of the warpgroups, for ddt, dlog_a and dD.
struct Sums {
  float rows[kRoles][kChunk];                                   // q_t . dq_t, k_s . dk_s, u_s . v_s (ddt_s)
  float through[kChunk];                                        // the part of k_s . dk_s through the adjoint
  float state_dot[kThreads / kWarp], skip[kWarpGroup / kWarp];  // of each warp: <S, G> and dy . v
};

template <int D>
struct Shared {
  Stage<D> stage[kStages<D>];
  Sums sums[2];
  TransactionBarrier full[kStages<D>];
};

// Starts the loads of a chunk, from one thread; without aligned16 copy_chunk() copies its tokens.
template <int D, bool kOutputs>
__device__ void produce_chunk(const Args& args, Stage<D>& stage, TransactionBarrier& full, int64_t item) {
  const SsdGradients<bf16_t>& f = args.f;
  const ChunkItem at(f.in, f.grid, f.first_head, item);
  const bool aligned16 = f.in.aligned16;
  constexpr int kTiles = kOutputs ? 4 : 2;
  full.expect_tx(2 * D * D * 2 + static_cast<int>(sizeof(ChunkDecays)) + (aligned16 ? kTiles * kChunk * D * 2 : 0));
  if (aligned16) {
    tma_load_tokens<D>(stage.tokens[kK], args.k, full, at.b, at.h, at.begin);
    tma_load_tokens<D>(stage.tokens[kV], args.v, full, at.b, at.h, at.begin);
    if (kOutputs) {
      tma_load_tokens<D>(stage.tokens[kQ], args.q, full, at.b, at.h, at.begin);
      tma_load_tokens<D>(stage.tokens[kDy], args.dy, full, at.b, at.h, at.begin);
    }
  }
  load_swizzled_tile<D, D>(stage.state, args.state, {}, full, item, 0, 0, 0, true);
  load_swizzled_tile<D, D>(stage.adjoint, args.adjoint, {}, full, item, 0, 0, 0, true);
  bulk_load(&stage.decays, decays_of(f.in, f.grid, at.head, at.chunk), sizeof(ChunkDecays), full);
  full.arrive();
}

// Copies a chunk's tokens with all threads: for rows that are not 16-byte aligned.
template <int D, bool kOutputs>
__device__ void copy_chunk(const SsdInputs<bf16_t>& in, Stage<D>& stage, const ChunkItem& at) {
  const auto copy = [&](bf16_t* to, const Cubes<const bf16_t>& from) {
    copy_tokens<D, kThreads>(to, from, at.b, at.h, at.begin, at.count);
  };
  copy(stage.tokens[kK], in.k), copy(stage.tokens[kV], in.v);
  if (kOutputs) copy(stage.tokens[kQ], in.q), copy(stage.tokens[kDy], in.dy);
  fence_view_async_shared();
  __syncthreads();
}

// --- Steps of a warpgroup ---

// sums[row] = the dot product of the row of acc with the same row of `tile`.
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

// acc += factor * tile.
template <int D>
__device__ void add_rows(float (&acc)[D / 8][4], const bf16_t* tile, float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(
          tile + panel_index<kChunk>(accumulator_row() + half * 8, n * 8 + accumulator_column()));
      acc[n][half * 2] += factor * low_bf16(pair), acc[n][half * 2 + 1] += factor * high_bf16(pair);
    }
  }
}

// Returns the thread's part of <S, G>.
template <int D>
__device__ float state_dot(const Stage<D>& stage) {
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

// --- One warpgroup's gradient of one chunk ---

// All roles run the same code: three variants would compete for the instruction cache.
template <int D, bool kOutputs>
__device__ void chunk_gradient(const SsdGradients<bf16_t>& f, const Stage<D>& stage, Sums& sums, const ChunkItem& place,
                               Role role) {
  const auto choose = [role](const auto& query, const auto& key, const auto& value) {
    return role == kQuery ? query : role == kKey ? key : value;
  };
  const bf16_t* own = stage.tokens[role];
  const ChunkDecays& decays = stage.decays;
  using Chunk = SmemDescriptor<true, kChunk>;
  const Chunk left(stage.tokens[choose(kDy, kV, kK)]);
  float acc[D / 8][4] = {}, pair[kChunk / 8][4] = {};
  uint32_t rounded[kChunk / 16][4];
  if constexpr (kOutputs) {  // between tokens: dy_t . v_s, its transpose, or k_s . q_t
    warpgroup_arrive();
    warpgroup_gemm<D / 16>(pair, left, Chunk(stage.tokens[choose(kV, kDy, kQ)]), false);
    warpgroup_commit_batch();
  }
  // Through the states: S dy_t, G v_s or G^T k_s.
  if (role == kValue) {
    warpgroup_arrive();
    warpgroup_gemm<D / 16>(acc, left, SmemDescriptor<false, D>(stage.adjoint), false);
    warpgroup_commit_batch();
  } else {
    warpgroup_arrive();
    warpgroup_gemm<D / 16>(acc, left, SmemDescriptor<true, D>(role == kQuery ? stage.state : stage.adjoint), false);
    warpgroup_commit_batch();
  }
  const float dot = warp_sum(state_dot(stage));
  if (threadIdx.x % kWarp == 0) sums.state_dot[threadIdx.x / kWarp] = dot;
  if constexpr (kOutputs) {
    warpgroup_wait<1>(pair);
    const float skip = warp_sum(
        decay_pairs(pair, decays, role == kQuery, choose(PairWeights::columns, PairWeights::rows, PairWeights::none)));
    if (role == kQuery && threadIdx.x % kWarp == 0) sums.skip[threadIdx.x / kWarp] = skip;
    to_fragments(rounded, pair);
  }
  warpgroup_wait<0>(acc);
  const int row = accumulator_row();
  const float dt[2] = {decays.dt[row], decays.dt[row + 8]};
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + half * 8;
    factor[half] = choose(decays.from_start[r], decays.to_end[r] * dt[half], decays.to_end[r]);
  }
  scale_rows(acc, factor[0], factor[1]);
  if (role == kKey) dot_rows<D>(sums.through, acc, own);
  if constexpr (kOutputs) {
    warpgroup_arrive();
    warpgroup_gemm(acc, rounded, SmemDescriptor<false, kChunk>(stage.tokens[choose(kK, kQ, kDy)]), true);
    warpgroup_commit_batch();
    warpgroup_wait<0>(acc);
  }
  dot_rows<D>(sums.rows[role], acc, own);
  if (role == kValue) scale_rows(acc, dt[0], dt[1]);
  if (kOutputs && role == kValue && f.in.skip_H != nullptr)
    add_rows<D>(acc, stage.tokens[kDy], widen(f.in.skip_H[place.h]));
  store_tokens(choose(f.dq, f.dk, f.dv), acc, place.b, place.h, place.begin, place.count, 0,
               role == kValue && f.accumulate_v, f.in.aligned16);
}

// Stores ddt, dlog_a and the chunk's part of dD. Called by one warp; lane i computes tokens 2 i and 2 i + 1.
template <bool kOutputs>
__device__ void decay_gradient(const SsdGradients<bf16_t>& f, const Sums& sums, const ChunkItem& place, float total) {
  const int lane = threadIdx.x % kWarp, j = lane * 2;
  float passing = 0;  // from states before the chunk to states after it
  for (float dot : sums.state_dot) passing += dot;
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
  float late[2] = {}, after = 0;
  if (kOutputs) {
    for (int e = 0; e < 2; ++e) late[e] = sums.rows[kQuery][j + e] - (sums.rows[kKey][j + e] - key[e]);
    after = late[0] + late[1];
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const float other = __shfl_down_sync(0xFFFFFFFFu, after, step);
      if (lane + step < kWarp) after += other;
    }
    after = __shfl_down_sync(0xFFFFFFFFu, after, 1);
    if (lane == kWarp - 1) after = 0;
  }
  const float out[2] = {passing + before + (late[0] + (late[1] + after)),
                        passing + before + key[0] + (late[1] + after)};
  for (int e = 0; e < 2; ++e) {
    if (j + e >= place.count) continue;
    f.dlog_a.at(place.b, place.begin + j + e)[place.h] = out[e];
    f.ddt.at(place.b, place.begin + j + e)[place.h] = sums.rows[kValue][j + e];
  }
  if (lane != 0) return;
  float skip = 0;
  if (kOutputs) {
    for (float part : sums.skip) skip += part;
  }
  f.skip_partial[place.head * f.grid.chunks + place.chunk] = skip;
}

template <int D, bool kOutputs>
__global__ void __launch_bounds__(kThreads, 1) gradient_kernel(const __grid_constant__ Args args) {
#if TMAMBA_HAS_WGMMA
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(shared_bytes);
  const SsdGradients<bf16_t>& f = args.f;
  const int warp = threadIdx.x / kWarp;
  const int64_t first = blockIdx.x, step = gridDim.x;
  if (threadIdx.x == 0) {
    for (TransactionBarrier& full : shared.full) full.init(1);
    fence_barrier_init();
    for (int i = 0; i < kStages<D>; ++i) {
      if (first + i * step < args.items) {
        produce_chunk<D, kOutputs>(args, shared.stage[i], shared.full[i], first + i * step);
      }
    }
  }
  __syncthreads();
  uint32_t n = 0;
  for (int64_t item = first; item < args.items; item += step, ++n) {
    const PipelineState<kStages<D>> state(n);
    Stage<D>& stage = shared.stage[state.stage];
    Sums& sums = shared.sums[n % 2];
    // The shuffle hides from the compiler that the role is constant, so that it does not compile one loop per role.
    const auto role = static_cast<Role>(__shfl_sync(0xFFFFFFFFu, warp / (kWarpGroup / kWarp), 0));
    const ChunkItem place(f.in, f.grid, f.first_head, item);
    shared.full[state.stage].wait(state.parity);
    if (!f.in.aligned16) copy_chunk<D, kOutputs>(f.in, stage, place);
    if (kOutputs || role != kQuery) {
      chunk_gradient<D, kOutputs>(f, stage, sums, place, role);
    } else {
      const float dot = warp_sum(state_dot(stage));
      if (threadIdx.x % kWarp == 0) sums.state_dot[warp] = dot;
    }
    const float total = stage.decays.total;
    __syncthreads();
    const int64_t next = item + kStages<D> * step;
    if (threadIdx.x == 0 && next < args.items) produce_chunk<D, kOutputs>(args, stage, shared.full[state.stage], next);
    if (warp == static_cast<int>(1 + n % (kThreads / kWarp - 1))) decay_gradient<kOutputs>(f, sums, place, total);
  }
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
  dispatch_tile_width(f.in.D, [&]<int kD>() { run<kD>(stream, f); });
}

}  // namespace tmamba::cuda
