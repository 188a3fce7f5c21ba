// The host's part of the Hopper attention kernels: order of the blocks.
#include "kernels/cuda/attention_wgmma.cuh"

namespace tmamba::cuda {

BlockOrder block_order(const AttentionSizes& s, int64_t rows, int64_t other_rows) {
  constexpr int64_t kCached = 24 << 20;  // bytes, half of the cache of an H200
  const int64_t fit = kCached / (2 * other_rows * s.D * static_cast<int64_t>(sizeof(bf16_t)));
  return {s.B * s.H, ceil_div(rows, kBlockRows), std::clamp<int64_t>(fit, 1, s.B * s.H)};
}

}  // namespace tmamba::cuda
