// What the tensor-core kernels of the SSM scan share: chunks of 64 tokens, K = D.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ssd.cuh"

namespace tmamba::cuda {

inline constexpr int kChunk = 64;

// The decays of one chunk of one head. Tokens beyond the last neither decay nor contribute (dt = 0).
struct alignas(16) ChunkDecays {
  float log2[kChunk];        // c_t in units of log 2
  float from_start[kChunk];  // exp(c_t)
  float to_end[kChunk];      // exp(c_last - c_s)
  float dt[kChunk];
  float total;  // exp(c_last)
  double log_total;

  // exp(c_t - c_s) for s <= t, 0 for s > t.
  __device__ float between(int t, int s) const { return s <= t ? exp2_approx(log2[t] - log2[s]) : 0.0f; }
};

// The gradients of every chunk (ssd_tiles_backward.cu); D = 64, 96, 128.
template <int D>
void ssd_tile_gradients(cudaStream_t stream, const SsdGradients<bf16_t>& f);

// The kernels for Hopper; D = 64, 96, 128.
void ssd_wgmma_walk(cudaStream_t stream, const SsdWalk<bf16_t>& w);
void ssd_wgmma_scan(cudaStream_t stream, const SsdWalk<bf16_t>& w, const Cubes<bf16_t>& y);
void ssd_wgmma_gradients(cudaStream_t stream, const SsdGradients<bf16_t>& f);

__device__ inline const ChunkDecays* decays_of(const SsdInputs<bf16_t>& in, const SsdGrid& grid, int64_t head,
                                               int64_t chunk) {
  return static_cast<const ChunkDecays*>(in.decays) + head * grid.chunks + chunk;
}
template <int kThreads>
__device__ inline void fetch_decays(ChunkDecays& to, const ChunkDecays* from) {
  constexpr int kPieces = sizeof(ChunkDecays) / 16;
  for (int i = threadIdx.x; i < kPieces; i += kThreads) {
    copy_async_16(reinterpret_cast<char*>(&to) + i * 16, reinterpret_cast<const char*>(from) + i * 16, true);
  }
}

// The chunk and head of a block.
struct ChunkPlace {
  int64_t chunk, slot, head, b, h, begin;  // slot: of the head among those at once
  int count;
  __device__ ChunkPlace(const SsdInputs<bf16_t>& in, const SsdGrid& grid, int64_t first_head) {
    chunk = blockIdx.x, slot = blockIdx.y, head = first_head + slot;
    b = head / in.H, h = head % in.H;
    begin = chunk * grid.chunk;
    count = static_cast<int>(in.T - begin < grid.chunk ? in.T - begin : grid.chunk);
  }
};

template <int D, int kThreads>
__device__ inline void load_chunk(bf16_t* tile, const Cubes<const bf16_t>& from, const ChunkPlace& place, bool wide) {
  load_tile<kChunk, D, kThreads>(tile, from.at(place.b, place.begin, place.h), from.t, place.count, wide);
}

// The state before (or the gradient behind) the chunk, as the walk left it.
template <int D, int kThreads>
__device__ inline void load_state(bf16_t* tile, const void* states, const ChunkPlace& place, const SsdGrid& grid) {
  const bf16_t* from = static_cast<const bf16_t*>(states) + (place.slot * grid.chunks + place.chunk) * D * D;
  load_tile<D, D, kThreads>(tile, from, D, D, true);
}

}  // namespace tmamba::cuda
