// Shared by all kernels: arithmetic types, 16-byte accesses, reductions, and launch().
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "kernels/base/strided.h"
#include "kernels/cuda/common/check.h"

namespace tmamba::cuda {

inline constexpr int kWarp = 32;

// --- Arithmetic: values stored as A are computed in Acc<A> ---

template <class A>
using Acc = std::conditional_t<std::is_same_v<A, double>, double, float>;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bf16_t x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

// Rounds two values to bfloat16 (nearest, ties to even) in one register, `low` at the lower address.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
__device__ inline float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

template <class To, class From>
__device__ inline To narrow(From x) {
  if constexpr (std::is_same_v<To, bf16_t>) {
    return {static_cast<uint16_t>(pack_bf16(static_cast<float>(x), 0.0f))};
  } else {
    return static_cast<To>(x);
  }
}

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ inline float exp2_approx(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

__device__ inline float reciprocal_approx(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// exp and sigmoid to the precision of activations of type A.
template <class A>
__device__ inline Acc<A> exp_of(Acc<A> x) {
  if constexpr (std::is_same_v<A, bf16_t>) {
    return exp2_approx(x * kLog2e);
  } else {
    return exp(x);
  }
}
template <class A>
__device__ inline Acc<A> sigmoid(Acc<A> x) {
  if constexpr (std::is_same_v<A, bf16_t>) {
    return reciprocal_approx(1.0f + exp_of<A>(-x));
  } else {
    return Acc<A>(1) / (Acc<A>(1) + exp(-x));
  }
}

// Calls f.template operator()<A>() for the storage type of an activation.
template <class F>
decltype(auto) dispatch_activation(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f.template operator()<bf16_t>();
  return dispatch_float(dtype, f);
}

// --- Vector accesses: 16 bytes, or 8 if a thread has no more ---

// Elements of type A in 16 bytes.
template <class A>
inline constexpr int kVec = 16 / static_cast<int>(sizeof(A));

// A vector of N consecutive elements in their storage type.
template <class A, int N = kVec<A>>
struct alignas(N * sizeof(A) % 16 == 0 ? 16 : 8) Raw {
  static_assert(N * sizeof(A) % 16 == 0 || N * sizeof(A) == 8);
  using Word = std::conditional_t<N * sizeof(A) % 16 == 0, uint4, uint2>;
  static constexpr int kWords = static_cast<int>(N * sizeof(A) / sizeof(Word));
  A v[N];
  // For bfloat16 one instruction, on the register that holds the element.
  __device__ Acc<A> operator[](int i) const {
    if constexpr (std::is_same_v<A, bf16_t>) {
      const uint32_t pair = reinterpret_cast<const uint32_t*>(v)[i / 2];
      return i % 2 == 0 ? low_bf16(pair) : high_bf16(pair);
    } else {
      return widen(v[i]);
    }
  }
  __device__ static Raw rounded(const Acc<A> (&x)[N]) {
    Raw out;
    if constexpr (std::is_same_v<A, bf16_t>) {
#pragma unroll
      for (int i = 0; i < N / 2; ++i) reinterpret_cast<uint32_t*>(out.v)[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) out.v[i] = x[i];
    }
    return out;
  }
};

// Loads the next N elements of a row of which `left` remain; elements beyond become zero. `aligned16`: see
// rows_aligned16().
template <class A, int N = kVec<A>>
__device__ inline Raw<A, N> load(const A* from, int64_t left, bool aligned16) {
  Raw<A, N> out;
  if (aligned16 && left >= N) {
    using Word = typename Raw<A, N>::Word;
#pragma unroll
    for (int i = 0; i < Raw<A, N>::kWords; ++i) {
      reinterpret_cast<Word*>(&out)[i] = reinterpret_cast<const Word*>(from)[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out.v[i] = i < left ? from[i] : A{};
  }
  return out;
}

template <class A, int N = kVec<A>>
__device__ inline void store(A* to, const Raw<A, N>& x, int64_t left, bool aligned16) {
  if (aligned16 && left >= N) {
    using Word = typename Raw<A, N>::Word;
#pragma unroll
    for (int i = 0; i < Raw<A, N>::kWords; ++i) {
      reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(&x)[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < left) to[i] = x.v[i];
    }
  }
}

// --- Reductions: in a fixed order; every thread returns the same bits ---

// The sum over groups of kLanes neighbouring lanes.
template <int kLanes = kWarp, class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  return x;
}

// The sum over a block of kThreads. `scratch` holds kThreads / 32 values; consecutive calls need no barrier in between.
template <int kThreads, class T>
__device__ inline T block_sum(T x, T* scratch) {
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  T sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) sum += scratch[i];
  return sum;
}

// Quotient and remainder of non-negative values; divides in 32 bits if both fit.
struct DivMod {
  int64_t quotient, remainder;
  __device__ DivMod(int64_t a, int64_t b) {
    if (((a | b) >> 32) == 0) {
      const uint32_t q = static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
      quotient = q, remainder = static_cast<uint32_t>(a) - q * static_cast<uint32_t>(b);
    } else {
      quotient = a / b, remainder = a % b;
    }
  }
};

// --- Launching ---

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

// Launches a kernel with `shared` bytes of dynamic shared memory; throws if the launch fails. An empty grid is a no-op.
template <class... Parameters, class... Args>
void launch(cudaStream_t stream, Grid grid, dim3 block, size_t shared, void (*kernel)(Parameters...),
            const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  TM_CHECK(grid.x < (int64_t{1} << 31) && grid.y < 65536 && grid.z < 65536, "a CUDA grid of ", grid.x, " x ", grid.y,
           " x ", grid.z, " blocks is too large");
  constexpr size_t kAlwaysThere = 32 << 10;  // of the 48 KB without opt-in; leaves room for static shared memory
  if (shared > kAlwaysThere) {
    TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  kernel<<<blocks, block, shared, stream>>>(args...);
  TM_CUDA(cudaGetLastError());
}

}  // namespace tmamba::cuda
