// Shared by the tensor-core kernels of the SSM scan: chunks of 64 tokens, K = D.
#pragma once

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/ssd/ssd.cuh"

namespace tmamba::cuda {

inline constexpr int kChunk = 64;

// The decays of one chunk of one head. Tokens beyond the last neither decay nor contribute (dt = 0).
struct alignas(16) ChunkDecays {
  float log2[kChunk];        // c_t in base 2
  float from_start[kChunk];  // exp(c_t)
  float to_end[kChunk];      // exp(c_last - c_s)
  float dt[kChunk];
  float total;  // exp(c_last)
  double log_total;

  // exp(c_t - c_s) for s <= t, 0 for s > t.
  __device__ float between(int t, int s) const { return s <= t ? exp2_approx(log2[t] - log2[s]) : 0.0f; }
};

// The gradients of all chunks (ssd_tiles_backward.cu); D = 64, 96, 128.
template <int D>
void ssd_tile_gradients(cudaStream_t stream, const SsdGradients<bf16_t>& f);

// The Hopper kernels; D = 64, 96, 128.
void ssd_wgmma_state_scan(cudaStream_t stream, const SsdStateScan<bf16_t>& w);
void ssd_wgmma_fused_scan(cudaStream_t stream, const SsdStateScan<bf16_t>& w, const Cubes<bf16_t>& y);
void ssd_wgmma_gradients(cudaStream_t stream, const SsdGradients<bf16_t>& f);

__device__ inline const ChunkDecays* decays_of(const SsdInputs<bf16_t>& in, const SsdGrid& grid, int64_t head,
                                               int64_t chunk) {
  return static_cast<const ChunkDecays*>(in.decays) + head * grid.chunks + chunk;
}

// Load the state that enters a segment, and store the state that leaves it. each(f) calls f(row, column, first, second)
// for each pair of neighbouring state elements that the thread holds.
template <int D, class Each>
__device__ __forceinline__ void load_entry_state(const SsdStateScan<bf16_t>& w, int64_t slot, const Each& each) {
  if (w.entry == nullptr) return;
  each([&](int i, int c, float& first, float& second) {
    const float2 pair = *reinterpret_cast<const float2*>(w.entry + slot * D * D + i * D + c);
    first = pair.x, second = pair.y;
  });
}
template <int D, class Each>
__device__ __forceinline__ void store_exit_state(const SsdStateScan<bf16_t>& w, const StateScanPlace<bf16_t>& place,
                                                 int64_t slot, double log_decay, const Each& each) {
  if (w.exit != nullptr) {
    each([&](int i, int c, float first, float second) {
      *reinterpret_cast<float2*>(w.exit + slot * D * D + i * D + c) = {first, second};
    });
    if (threadIdx.x == 0) w.log_decay[slot] = static_cast<float>(log_decay);
  }
  if (w.last.data != nullptr && place.last) {
    each([&](int i, int c, float first, float second) {
      float* out = w.last.at(place.b, place.h, i) + c;
      out[0] = first, out[1] = second;
    });
  }
}

template <int kThreads>
__device__ inline void cp_async_decays(ChunkDecays& to, const ChunkDecays* from) {
  constexpr int kVectors = sizeof(ChunkDecays) / 16;
  for (int i = threadIdx.x; i < kVectors; i += kThreads) {
    cp_async_16(reinterpret_cast<char*>(&to) + i * 16, reinterpret_cast<const char*>(from) + i * 16, true);
  }
}

template <int D, int kThreads>
__device__ inline void load_chunk(bf16_t* tile, const Cubes<const bf16_t>& from, const ChunkPlace& place,
                                  bool aligned16) {
  load_tile<kChunk, D, kThreads>(tile, from.at(place.b, place.begin, place.h), from.t, place.count, aligned16);
}

// Loads the state before (or the gradient after) the chunk, which a state scan has stored.
template <int D, int kThreads>
__device__ inline void load_state(bf16_t* tile, const void* states, const ChunkPlace& place, const SsdGrid& grid) {
  const bf16_t* from = static_cast<const bf16_t*>(states) + (place.slot * grid.chunks + place.chunk) * D * D;
  load_tile<D, D, kThreads>(tile, from, D, D, true);
}

}  // namespace tmamba::cuda
