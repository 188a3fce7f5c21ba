// Matrix multiplications of one warp on tensor cores: mma.sync m16n8k16 with bfloat16 operands and float32 accumulators
// (compute capability 8.0 and later). Fragments have the layouts of the PTX manual: lane 4 g + q holds elements
// (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1) of an accumulator tile [16, 8].
#pragma once

#include "kernels/cuda/common/device.cuh"

namespace tmamba::cuda {

// The row pitch of a tile in shared memory, in elements: 16 bytes more than a row, so that eight neighbouring rows lie
// in different banks.
template <int kCols>
inline constexpr int kPitch = kCols + 8;

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void ldmatrix(uint32_t (&r)[4], const bf16_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], const bf16_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void mma(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Loads the fragment of a [16 (m), 16 (k)], stored as [m, k], or as [k, m] if kTransposed.
template <bool kTransposed>
__device__ inline void load_a(uint32_t (&r)[4], const bf16_t* tile, int pitch) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (kTransposed) {
    ldmatrix_transposed(r, tile + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
  } else {
    ldmatrix(r, tile + lane % 16 * pitch + lane / 16 * 8);
  }
}

// Loads the fragments of b [16 (k), 16 (n)], two tiles of n, stored as [n, k], or as [k, n] if kTransposed.
template <bool kTransposed>
__device__ inline void load_b(uint32_t (&r)[4], const bf16_t* tile, int pitch) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (kTransposed) {
    ldmatrix_transposed(r, tile + lane % 16 * pitch + lane / 16 * 8);
  } else {
    ldmatrix(r, tile + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
  }
}

// acc [kM * 16, kN * 8] += a [kM * 16, kK * 16] b [kK * 16, kN * 8] with both operands in shared memory: a stored as
// [m, k] ([k, m] if kTransposeA), b stored as [n, k] ([k, n] if kTransposeB).
template <int kM, int kN, int kK, bool kTransposeA, bool kTransposeB>
__device__ inline void warp_gemm(float (&acc)[kM][kN][4], const bf16_t* a, int a_pitch, const bf16_t* b, int b_pitch) {
  static_assert(kN % 2 == 0);
#pragma unroll
  for (int k = 0; k < kK; ++k) {
    uint32_t a_frag[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      load_a<kTransposeA>(a_frag[m], a + (kTransposeA ? k * 16 * a_pitch + m * 16 : m * 16 * a_pitch + k * 16),
                          a_pitch);
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b_frag[4];
      load_b<kTransposeB>(b_frag, b + (kTransposeB ? k * 16 * b_pitch + n * 8 : n * 8 * b_pitch + k * 16), b_pitch);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma(acc[m][n], a_frag[m], b_frag[0], b_frag[1]);
        mma(acc[m][n + 1], a_frag[m], b_frag[2], b_frag[3]);
      }
    }
  }
}

// The same with a in registers, as fragments: a[m][k] is the tile [16, 16] at (16 m, 16 k).
template <int kM, int kN, int kK, bool kTransposeB>
__device__ inline void warp_gemm(float (&acc)[kM][kN][4], const uint32_t (&a)[kM][kK][4], const bf16_t* b,
                                 int b_pitch) {
  static_assert(kN % 2 == 0);
#pragma unroll
  for (int k = 0; k < kK; ++k) {
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b_frag[4];
      load_b<kTransposeB>(b_frag, b + (kTransposeB ? k * 16 * b_pitch + n * 8 : n * 8 * b_pitch + k * 16), b_pitch);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma(acc[m][n], a[m][k], b_frag[0], b_frag[1]);
        mma(acc[m][n + 1], a[m][k], b_frag[2], b_frag[3]);
      }
    }
  }
}

// Accumulators [kM * 16, kK * 16] rounded to bfloat16, as fragments of operand a.
template <int kM, int kK>
__device__ inline void to_fragments(uint32_t (&a)[kM][kK][4], const float (&acc)[kM][2 * kK][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int k = 0; k < kK; ++k) {
      const float(&left)[4] = acc[m][2 * k];
      const float(&right)[4] = acc[m][2 * k + 1];
      a[m][k][0] = pack_bf16(left[0], left[1]);
      a[m][k][1] = pack_bf16(left[2], left[3]);
      a[m][k][2] = pack_bf16(right[0], right[1]);
      a[m][k][3] = pack_bf16(right[2], right[3]);
    }
  }
}

// --- Tiles between global and shared memory ---

// Copies 16 bytes asynchronously; writes zeros if `here` is false.
__device__ inline void cp_async_16(void* to, const void* from, bool here) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(here ? 16 : 0)
               : "memory");
}
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of the groups that this thread committed are in flight.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Copies rows [0, count) of kCols elements, `stride` apart, to a tile of kRows; the other rows become zero.
// `aligned16`: see rows_aligned16(). Asynchronous if aligned16.
template <int kRows, int kCols, int kThreads>
__device__ inline void load_tile(bf16_t* tile, const bf16_t* from, int64_t stride, int64_t count, bool aligned16) {
  constexpr int kVectors = kCols / 8;
  for (int i = threadIdx.x; i < kRows * kVectors; i += kThreads) {
    const int row = i / kVectors, col = i % kVectors * 8;
    bf16_t* to = tile + row * kPitch<kCols> + col;
    const bool here = row < count;
    const bf16_t* source = here ? from + row * stride + col : from;
    if (aligned16) {
      cp_async_16(to, source, here);
    } else {
      for (int e = 0; e < 8; ++e) to[e] = here ? source[e] : bf16_t{};
    }
  }
}

// Store and load two neighbouring elements of a row. `aligned16`: the address is a multiple of 4 bytes.
__device__ inline void store_pair(bf16_t* to, float first, float second, bool aligned16) {
  const uint32_t pair = pack_bf16(first, second);
  if (aligned16) {
    *reinterpret_cast<uint32_t*>(to) = pair;
  } else {
    to[0].bits = static_cast<uint16_t>(pair), to[1].bits = static_cast<uint16_t>(pair >> 16);
  }
}
__device__ inline void load_pair(const bf16_t* from, float& first, float& second, bool aligned16) {
  if (aligned16) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(from);
    first = low_bf16(pair), second = high_bf16(pair);
  } else {
    first = widen(from[0]), second = widen(from[1]);
  }
}

// Adds `factor` times one of the thread's two accumulator rows (half = 0 or 1) to a row of a tensor; `out` points to
// the thread's first column.
template <int kN>
__device__ __forceinline__ void add_accumulator_row(bf16_t* out, const float (&acc)[kN][4], int half, float factor,
                                                    bool aligned16) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    float first, second;
    load_pair(out + n * 8, first, second, aligned16);
    store_pair(out + n * 8, first + acc[n][half * 2] * factor, second + acc[n][half * 2 + 1] * factor, aligned16);
  }
}

}  // namespace tmamba::cuda
