// Shared parts of the Hopper attention kernels (wgmma.cuh). A block has one producer warpgroup, which loads tiles, and
// kConsumerGroups consumer warpgroups, each of which computes 64 rows.
#pragma once

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/common/wgmma.cuh"

namespace tmamba::cuda {

inline constexpr int kGroupRows = 64;
inline constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;  // 168 per thread are allocated at launch
inline constexpr int kConsumerGroups = 2, kConsumerWarps = kConsumerGroups * 4;
inline constexpr int kAttentionThreads = (1 + kConsumerGroups) * kWarpGroup, kBlockRows = kConsumerGroups * kGroupRows;

// The order of the blocks: heads_at_once heads at a time, so that tiles that their blocks re-read stay in the L2 cache;
// within these heads the blocks with the most work come first.
struct BlockOrder {
  int64_t heads, tiles, heads_at_once;
  int64_t blocks() const { return heads * tiles; }
};
// `rows`: the rows that blocks own, per head. `other_rows`: the rows that every block of a head reads.
inline BlockOrder block_order(const AttentionSizes& s, int64_t rows, int64_t other_rows) {
  constexpr int64_t kCached = 24 << 20;  // bytes: half of the L2 cache of an H200
  const int64_t fit = kCached / (2 * other_rows * s.D * static_cast<int64_t>(sizeof(bf16_t)));
  return {s.B * s.H, ceil_div(rows, kBlockRows), std::clamp<int64_t>(fit, 1, s.B * s.H)};
}

struct BlockPlace {
  int64_t b, h, bh, tile;  // tile: in order of decreasing work
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

// A block's queries [first, last) and the keys [0, key_end) that they attend to, in tiles of kKeys.
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

// Runs a block: initialises the barriers, then runs producer(shared, span) in the first warpgroup and consumer(shared,
// span) in the others. Shared::init_barriers(arrivals) takes the number of producer threads that arrive at each
// barrier.
template <class Shared, class Span, class Args, class Producer, class Consumer>
__device__ __forceinline__ void run_warp_specialized(const Args& args, const Producer& producer,
                                                     const Consumer& consumer) {
  extern __shared__ __align__(kPanelAlign) char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  if (threadIdx.x == 0) {
    shared.init_barriers(args.f.size.aligned16 ? 1 : kWarpGroup);
    fence_barrier_init();
  }
  __syncthreads();
  const Span span(args);
  if (threadIdx.x < kWarpGroup) {
    warpgroup_reg_dealloc<kProducerRegisters>();
    producer(shared, span);
  } else {
    warpgroup_reg_alloc<kConsumerRegisters>();
    consumer(shared, span);
  }
}

}  // namespace tmamba::cuda
