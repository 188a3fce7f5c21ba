// What the kernels share: number types, 16-byte accesses, reductions, and the one way to launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "kernels/base/strided.h"
#include "kernels/cuda/common/check.h"

namespace tmamba::cuda {

inline constexpr int kWarp = 32;

// --- Numbers: storage type A, arithmetic in Acc<A>
// --------------------------------------------------------------------

template <class A>
using Acc = std::conditional_t<std::is_same_v<A, double>, double, float>;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bf16_t x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

// Two numbers rounded to bfloat16 (nearest, ties to even) in one register, `low` at the lower address.
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

// exp and sigmoid to the precision that activations of type A keep.
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

// --- Wide accesses: 16 bytes, or 8 where a thread has no more
// -------------------------------------------------------------

// Elements of type A in 16 bytes.
template <class A>
inline constexpr int kVec = 16 / static_cast<int>(sizeof(A));

// N consecutive elements as they are stored.
template <class A, int N = kVec<A>>
struct alignas(N * sizeof(A) % 16 == 0 ? 16 : 8) Raw {
  static_assert(N * sizeof(A) % 16 == 0 || N * sizeof(A) == 8);
  using Piece = std::conditional_t<N * sizeof(A) % 16 == 0, uint4, uint2>;
  static constexpr int kPieces = static_cast<int>(N * sizeof(A) / sizeof(Piece));
  A v[N];
  // Of bfloat16 by the register that holds the element: one instruction.
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

// Loads elements [0, N) of what remains of a row, zeros beyond `left`. `wide` as wide_rows() says.
template <class A, int N = kVec<A>>
__device__ inline Raw<A, N> load(const A* from, int64_t left, bool wide) {
  Raw<A, N> out;
  if (wide && left >= N) {
    using Piece = typename Raw<A, N>::Piece;
#pragma unroll
    for (int i = 0; i < Raw<A, N>::kPieces; ++i) {
      reinterpret_cast<Piece*>(&out)[i] = reinterpret_cast<const Piece*>(from)[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out.v[i] = i < left ? from[i] : A{};
  }
  return out;
}

template <class A, int N = kVec<A>>
__device__ inline void store(A* to, const Raw<A, N>& x, int64_t left, bool wide) {
  if (wide && left >= N) {
    using Piece = typename Raw<A, N>::Piece;
#pragma unroll
    for (int i = 0; i < Raw<A, N>::kPieces; ++i) {
      reinterpret_cast<Piece*>(to)[i] = reinterpret_cast<const Piece*>(&x)[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < left) to[i] = x.v[i];
    }
  }
}

// --- Reductions: in a fixed order, the same result in every thread
// ----------------------------------------------------

// Over groups of kLanes neighbouring lanes.
template <int kLanes = kWarp, class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  return x;
}

// Over a block of kThreads. `scratch` holds kThreads / 32 numbers; a second call needs no barrier in between.
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

// Quotient and remainder; 32-bit division where the numbers allow it.
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

// --- Launching
// ----------------------------------------------------------------------------------------------------------

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

// Launches a kernel with `shared` bytes of dynamic shared memory; throws where the launch is refused.
template <class... Parameters, class... Args>
void launch(cudaStream_t stream, Grid grid, dim3 block, size_t shared, void (*kernel)(Parameters...),
            const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  TM_CHECK(grid.x < (int64_t{1} << 31) && grid.y < 65536 && grid.z < 65536, "a CUDA grid of ", grid.x, " x ", grid.y,
           " x ", grid.z, " blocks is too large");
  constexpr size_t kAlwaysThere = 32 << 10;  // of 48 KB, as a kernel may have static shared memory too
  if (shared > kAlwaysThere) {
    TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  kernel<<<blocks, block, shared, stream>>>(args...);
  TM_CUDA(cudaGetLastError());
}

}  // namespace tmamba::cuda
