// Shared by the kernels without tensor cores: blocks of eight warps, and tiles of 32 rows in shared memory.
#pragma once

#include "kernels/cuda/common/device.cuh"

namespace tmamba::cuda {

inline constexpr int kPlainRows = 32, kPlainWarps = 8, kPlainThreads = kPlainWarps * kWarp;

// [kPlainRows, width]; the pitch is width + 1, so that neighbouring rows lie in different banks.
template <class T>
struct PlainTile {
  T* data;
  int pitch;
  __device__ T* operator[](int row) const { return data + row * pitch; }
};

template <class T>
constexpr size_t plain_tile_bytes(int64_t width) {
  return sizeof(T) * static_cast<size_t>(kPlainRows * (width + 1));
}

template <class T>
__device__ PlainTile<T> take_tile(T*& memory, int64_t width) {
  const PlainTile<T> tile{memory, static_cast<int>(width) + 1};
  memory += kPlainRows * tile.pitch;
  return tile;
}

// Copies rows [begin, end) of a tensor, at most kPlainRows; the other rows become zero.
template <class A, class T>
__device__ void fill_tile(const PlainTile<T>& tile, const Cubes<const A>& from, int64_t b, int64_t begin, int64_t end,
                          int64_t h, int64_t width) {
  for (int row = threadIdx.x / kWarp; row < kPlainRows; row += kPlainWarps) {
    for (int64_t c = threadIdx.x % kWarp; c < width; c += kWarp) {
      tile[row][c] = begin + row < end ? static_cast<T>(widen(from.at(b, begin + row, h)[c])) : T(0);
    }
  }
}

template <class T>
__device__ T dot(const T* x, const T* y, int64_t count) {
  T sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i] * y[i];
  return sum;
}

// Throws if a block of the current GPU cannot have `bytes` of shared memory; the message begins with `whose`.
template <class... Parts>
void check_block_memory(size_t bytes, const Parts&... whose) {
  int device = 0, most = 0;
  TM_CUDA(cudaGetDevice(&device));
  TM_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  TM_CHECK(bytes <= static_cast<size_t>(most), whose..., " need ", bytes, " bytes of shared memory, this GPU has ",
           most, " per block");
}

}  // namespace tmamba::cuda
