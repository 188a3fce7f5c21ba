// What the Hopper attention kernels share (wgmma.cuh): a block is one warpgroup that has tiles fetched and kGroups
// warpgroups that compute, with 64 rows of their own each.
#pragma once

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/common/wgmma.cuh"

namespace tmamba::cuda {

inline constexpr int kGroupRows = 64;
inline constexpr int kFetchRegisters = 24, kComputeRegisters = 240;  // of the register file of 168 for each thread
inline constexpr int kGroups = 2, kAttentionThreads = (1 + kGroups) * kWarpGroup, kBlockRows = kGroups * kGroupRows;

// Order of the blocks: some heads at a time, so that what their blocks read again stays in the second-level cache;
// among these heads the blocks with most work first.
struct BlockOrder {
  int64_t heads, tiles, heads_at_once;
  int64_t blocks() const { return heads * tiles; }
};
// `rows` that the blocks own, `other_rows` that they read again.
inline BlockOrder block_order(const AttentionSizes& s, int64_t rows, int64_t other_rows) {
  constexpr int64_t kCached = 24 << 20;  // bytes, half of the cache of an H200
  const int64_t fit = kCached / (2 * other_rows * s.D * static_cast<int64_t>(sizeof(bf16_t)));
  return {s.B * s.H, ceil_div(rows, kBlockRows), std::clamp<int64_t>(fit, 1, s.B * s.H)};
}

struct BlockPlace {
  int64_t b, h, bh, tile;  // tile: in order of falling work
  __device__ BlockPlace(const BlockOrder& order, int64_t H) {
    const DivMod group(blockIdx.x, order.heads_at_once * order.tiles);
    const int64_t begin = group.quotient * order.heads_at_once;
    const int64_t count = order.heads - begin < order.heads_at_once ? order.heads - begin : order.heads_at_once;
    const DivMod within(group.remainder, count);
    bh = begin + within.remainder, tile = within.quotient;
    const DivMod head(bh, H);
    b = head.quotient, h = head.remainder;
  }
};

// A block's queries [first, last) and the keys [0, key_end) that they see, in tiles of kKeys.
template <int kKeys>
struct QuerySpan {
  BlockPlace place;
  int64_t first, last, key_end, tiles;
  template <class Args>
  __device__ explicit QuerySpan(const Args& args) : place(args.order, args.f.size.H) {
    const AttentionSizes& s = args.f.size;
    first = (args.order.tiles - 1 - place.tile) * kBlockRows;
    last = first + kBlockRows < s.T ? first + kBlockRows : s.T;
    key_end = s.q_begin + last, tiles = (key_end + kKeys - 1) / kKeys;
  }
};

// Which of a ring of kStages tiles the n-th is, and the parity of its phase.
template <int kStages>
struct Turn {
  int stage;
  uint32_t parity;
  __device__ explicit Turn(int64_t n) {
    const auto i = static_cast<uint32_t>(n);
    stage = static_cast<int>(i % kStages), parity = i / kStages % 2;
  }
};

// A ring's barriers. A tile is full when `arrivals` threads and the copy engine have filled it, empty when every warp
// that computes has left it.
template <int kStages>
struct Ring {
  Barrier full[kStages], empty[kStages];
  __device__ void init(int arrivals) {
    for (int i = 0; i < kStages; ++i) full[i].init(arrivals), empty[i].init(kGroups * 4);
  }
};

__device__ inline void leave(Barrier& empty) {
  if (threadIdx.x % kWarp == 0) empty.arrive();
}

// The course of a block: barriers are made, then one warpgroup fetches while the others compute. Shared has
// init_barriers(arrivals), the threads that arrive at a full one; fetch(shared, span) and compute(shared, span).
template <class Shared, class Span, class Args, class Fetch, class Compute>
__device__ __forceinline__ void run_block(const Args& args, const Fetch& fetch, const Compute& compute) {
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  if (threadIdx.x == 0) {
    shared.init_barriers(args.f.size.wide ? 1 : kWarpGroup);
    publish_barriers();
  }
  __syncthreads();
  const Span span(args);
  if (threadIdx.x < kWarpGroup) {
    keep_registers<kFetchRegisters>();
    fetch(shared, span);
  } else {
    take_registers<kComputeRegisters>();
    compute(shared, span);
  }
}

}  // namespace tmamba::cuda
