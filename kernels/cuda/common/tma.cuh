// Tiles in swizzled shared memory and their loads by TMA (bulk tensor copies), for Hopper kernels (sm_90a).
//
// A tile [rows, D] of shared memory is D / 32 panels of [rows, 32]: rows of 64 bytes, whose 16-byte vectors are
// permuted so that eight neighbouring rows lie in different banks (the 64-byte swizzle of the PTX manual). So D may be
// 64, 96 or 128.
#pragma once

#include <cuda.h>

#include "kernels/cuda/common/pipeline.cuh"

namespace tmamba::cuda {

inline constexpr int kWarpGroup = 4 * kWarp;
inline constexpr int kPanelCols = 32, kPanelRowBytes = kPanelCols * 2;
inline constexpr int kPanelAlign = 1024;

template <int kRows>
inline constexpr int kPanelBytes = kRows* kPanelRowBytes;

// The index of element (row, col) of a tile [kRows, D].
template <int kRows>
__device__ inline int panel_index(int row, int col) {
  const int vector = (col % kPanelCols / 8) ^ (row / 2 % 4);
  return col / kPanelCols * (kRows * kPanelCols) + row * kPanelCols + vector * 8 + col % 8;
}

// The TMA descriptor of a tensor [B, T, H, D] for panels of `rows` tokens. Rows beyond T read as zeros. The tensor must
// satisfy rows_aligned16().
CUtensorMap make_tensor_map(const Cubes<const bf16_t>& x, int64_t B, int64_t T, int64_t H, int64_t D, int rows);

__device__ inline void tma_load_panel(bf16_t* to, const CUtensorMap& map, TransactionBarrier& full, int col, int h,
                                      int row, int b) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
      :
      : "r"(shared_address(to)), "l"(&map), "r"(shared_address(&full)), "r"(col), "r"(h), "r"(row), "r"(b)
      : "memory");
}

// Loads `bytes` consecutive bytes. Both addresses and `bytes` are multiples of 16.
__device__ inline void bulk_load(void* to, const void* from, int bytes, TransactionBarrier& full) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :
               : "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(&full))
               : "memory");
}

// Loads a tile [kRows, D] of a tensor whose rows [0, end) exist. With `aligned16` one thread calls it and TMA copies
// the tile, whose bytes `full` must expect; otherwise all threads of a warpgroup call it and copy. In both cases the
// callers arrive at `full` afterwards.
template <int kRows, int D>
__device__ inline void load_swizzled_tile(bf16_t* tile, const CUtensorMap& map, const Cubes<const bf16_t>& from,
                                          TransactionBarrier& full, int64_t b, int64_t h, int64_t row, int64_t end,
                                          bool aligned16) {
  if (aligned16) {
#pragma unroll
    for (int panel = 0; panel < D / kPanelCols; ++panel) {
      tma_load_panel(tile + panel * kRows * kPanelCols, map, full, panel * kPanelCols, static_cast<int>(h),
                     static_cast<int>(row), static_cast<int>(b));
    }
    return;
  }
  for (int i = threadIdx.x % kWarpGroup; i < kRows * D; i += kWarpGroup) {
    const int r = i / D, c = i % D;
    tile[panel_index<kRows>(r, c)] = row + r < end ? from.at(b, row + r, h)[c] : bf16_t{};
  }
  fence_view_async_shared();
}

}  // namespace tmamba::cuda
