// Matrix multiplications of a warpgroup (four warps) on Hopper's tensor cores: wgmma with bfloat16 operands and float32
// accumulators. Only for sm_90a: kernels put their bodies into #if TMAMBA_HAS_WGMMA. Layouts are those of the PTX
// manual's sections on wgmma; operands in shared memory are swizzled tiles (tma.cuh).
#pragma once

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/common/tma.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TMAMBA_HAS_WGMMA 1
#else
#define TMAMBA_HAS_WGMMA 0
#endif

namespace tmamba::cuda {

// --- Registers (setmaxnreg) ---

// Reduces or raises the registers per thread of the calling warpgroup; raising waits until others have released enough.
template <int kCount>
__device__ inline void warpgroup_reg_dealloc() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void warpgroup_reg_alloc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// --- Matrix multiplications: arrive, wgmma, commit_batch, wait ---

// Orders the warpgroup's earlier register writes before the next wgmma instructions, which may read them.
__device__ inline void warpgroup_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void warpgroup_commit_batch() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending committed batches are in flight; then the accumulators `accs` may be read. The empty asm
// keeps the compiler from moving reads of the accumulators before the wait.
template <int kPending, class... Acc>
__device__ inline void warpgroup_wait(Acc&... accs) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  const auto touch = [](auto& acc) {
    for (auto& quad : acc) asm volatile("" : "+f"(quad[0]), "+f"(quad[1]), "+f"(quad[2]), "+f"(quad[3])::"memory");
  };
  (touch(accs), ...);
}

// The matrix descriptor of an operand in shared memory, a swizzled tile. kMajorK: the tile is [m or n, k] with k along
// its rows ("K-major"); otherwise [k, m or n].
template <bool kMajorK, int kRows>
struct SmemDescriptor {
  uint64_t bits;

  __device__ explicit SmemDescriptor(const bf16_t* tile, int row = 0) {
    constexpr uint64_t kSwizzle64 = uint64_t{2} << 62;
    constexpr uint64_t kEightRows = 8 * kPanelRowBytes / 16;            // stride between groups of eight rows
    constexpr uint64_t kPanel = kMajorK ? 1 : kPanelBytes<kRows> / 16;  // stride between panels along m or n
    const uint64_t address = (shared_address(tile) + row * kPanelRowBytes) / 16;
    bits = address | kPanel << 16 | kEightRows << 32 | kSwizzle64;
  }
  // The descriptor of columns (rows, if not kMajorK) [16 k, 16 k + 16) of the tile.
  __device__ uint64_t at(int k) const {
    return bits + (kMajorK ? k / 2 * (kPanelBytes<kRows> / 16) + k % 2 * 2 : k * 16 * kPanelRowBytes / 16);
  }
};

#define TMAMBA_ACC4(n) "+f"(acc[n][0]), "+f"(acc[n][1]), "+f"(acc[n][2]), "+f"(acc[n][3])
#define TMAMBA_ACC16(n) TMAMBA_ACC4(n), TMAMBA_ACC4(n + 1), TMAMBA_ACC4(n + 2), TMAMBA_ACC4(n + 3)
#define TMAMBA_REG16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define TMAMBA_REG32 TMAMBA_REG16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define TMAMBA_REG48 TMAMBA_REG32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define TMAMBA_REG64 TMAMBA_REG48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// acc [64, N] = a b, or += if `adds`. Both operands in shared memory (a0 .. a5: indices of the asm operands after acc):
#define TMAMBA_WGMMA_SS(N, regs, a0, a1, a2, a3, a4, ...)                                                    \
  template <bool kMajorA, bool kMajorB>                                                                      \
  __device__ inline void wgmma(float(&acc)[N / 8][4], uint64_t a, uint64_t b, bool adds) {                   \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %" #a2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N \
                 "k16.f32.bf16.bf16 {" regs "}, %" #a0 ", %" #a1 ", adds, 1, 1, %" #a3 ", %" #a4 ";\n}\n"    \
                 : __VA_ARGS__                                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(adds)), "n"(kMajorA ? 0 : 1), "n"(kMajorB ? 0 : 1)); \
  }
// The same with a [64, 16] in registers: each warp holds the fragments of its 16 rows.
#define TMAMBA_WGMMA_RS(N, regs, a0, a1, a2, a3, a4, a5, a6, ...)                                                   \
  template <bool kMajorB>                                                                                           \
  __device__ inline void wgmma(float(&acc)[N / 8][4], const uint32_t(&a)[4], uint64_t b, bool adds) {               \
    asm volatile(                                                                                                   \
        "{\n.reg .pred adds;\nsetp.ne.b32 adds, %" #a5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                 \
        "k16.f32.bf16.bf16 {" regs "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #a4 ", adds, 1, 1, %" #a6 ";\n}\n" \
        : __VA_ARGS__                                                                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(adds)), "n"(kMajorB ? 0 : 1));   \
  }
TMAMBA_WGMMA_SS(32, TMAMBA_REG16, 16, 17, 18, 19, 20, TMAMBA_ACC16(0))
TMAMBA_WGMMA_SS(64, TMAMBA_REG32, 32, 33, 34, 35, 36, TMAMBA_ACC16(0), TMAMBA_ACC16(4))
TMAMBA_WGMMA_SS(96, TMAMBA_REG48, 48, 49, 50, 51, 52, TMAMBA_ACC16(0), TMAMBA_ACC16(4), TMAMBA_ACC16(8))
TMAMBA_WGMMA_SS(128, TMAMBA_REG64, 64, 65, 66, 67, 68, TMAMBA_ACC16(0), TMAMBA_ACC16(4), TMAMBA_ACC16(8),
                TMAMBA_ACC16(12))
TMAMBA_WGMMA_RS(32, TMAMBA_REG16, 16, 17, 18, 19, 20, 21, 22, TMAMBA_ACC16(0))
TMAMBA_WGMMA_RS(64, TMAMBA_REG32, 32, 33, 34, 35, 36, 37, 38, TMAMBA_ACC16(0), TMAMBA_ACC16(4))
TMAMBA_WGMMA_RS(96, TMAMBA_REG48, 48, 49, 50, 51, 52, 53, 54, TMAMBA_ACC16(0), TMAMBA_ACC16(4), TMAMBA_ACC16(8))
TMAMBA_WGMMA_RS(128, TMAMBA_REG64, 64, 65, 66, 67, 68, 69, 70, TMAMBA_ACC16(0), TMAMBA_ACC16(4), TMAMBA_ACC16(8),
                TMAMBA_ACC16(12))
#undef TMAMBA_WGMMA_SS
#undef TMAMBA_WGMMA_RS
#undef TMAMBA_REG16
#undef TMAMBA_REG32
#undef TMAMBA_REG48
#undef TMAMBA_REG64
#undef TMAMBA_ACC4
#undef TMAMBA_ACC16

// acc [64, N] = a b (or += if `adds`), where a has kSteps * 16 columns.
template <int kSteps, int kN, bool kMajorA, int kRowsA, bool kMajorB, int kRowsB>
__device__ inline void warpgroup_gemm(float (&acc)[kN][4], const SmemDescriptor<kMajorA, kRowsA>& a,
                                      const SmemDescriptor<kMajorB, kRowsB>& b, bool adds) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) wgmma<kMajorA, kMajorB>(acc, a.at(k), b.at(k), adds || k > 0);
}
template <int kSteps, int kN, bool kMajorB, int kRowsB>
__device__ inline void warpgroup_gemm(float (&acc)[kN][4], const uint32_t (&a)[kSteps][4],
                                      const SmemDescriptor<kMajorB, kRowsB>& b, bool adds) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) wgmma<kMajorB>(acc, a[k], b.at(k), adds || k > 0);
}

// --- Accumulators ---

// A thread holds two of a warpgroup's 64 rows: accumulator_row() in acc[n][0 .. 1] and the row eight below in
// acc[n][2 .. 3], at columns 8 n + accumulator_column() and the next.
[[maybe_unused]] __device__ inline int accumulator_row() {
  return threadIdx.x % kWarpGroup / kWarp * 16 + threadIdx.x % kWarp / 4;
}
[[maybe_unused]] __device__ inline int accumulator_column() { return threadIdx.x % 4 * 2; }

// Accumulators rounded to bfloat16, as fragments of operand a.
template <int kN>
__device__ inline void to_fragments(uint32_t (&to)[kN / 2][4], const float (&from)[kN][4]) {
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      to[k][e] = pack_bf16(from[2 * k + e / 2][e % 2 * 2], from[2 * k + e / 2][e % 2 * 2 + 1]);
    }
  }
}

// Transposes words[4] among four neighbouring lanes: afterwards lane i holds words[i] of lanes 0 .. 3.
[[maybe_unused]] __device__ inline void transpose_quad(uint32_t (&words)[4]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const uint32_t low = words[i], high = words[i + step];
      const uint32_t received = __shfl_xor_sync(0xFFFFFFFFu, upper ? low : high, step);
      words[i] = upper ? received : low, words[i + step] = upper ? high : received;
    }
  }
}

// Stores the thread's first (kHalf = 0) or second (kHalf = 1) accumulator row to `out` in 16-byte vectors. All lanes of
// a warp call it; `here` tells whether this lane's row exists.
template <int kHalf, int kN>
__device__ inline void store_row(bf16_t* out, const float (&acc)[kN][4], bool here) {
#pragma unroll
  for (int n = 0; n < kN; n += 4) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pack_bf16(acc[n + i][kHalf * 2], acc[n + i][kHalf * 2 + 1]);
    transpose_quad(words);
    if (here) *reinterpret_cast<uint4*>(out + (n + threadIdx.x % 4) * 8) = {words[0], words[1], words[2], words[3]};
  }
}

}  // namespace tmamba::cuda
