// Matrix products of a warpgroup (four warps) on Hopper's tensor cores: wgmma, bfloat16 in, float32 sums; copies of
// tiles by the copy engine (TMA) that end on barriers in shared memory. Only for kernels of compute capability 9.0
// (sm_90a): their bodies stand in #if TMAMBA_HAS_WGMMA. Layouts are those of the PTX manual, sections on wgmma and on
// tensor maps.
//
// A tile [rows, D] of shared memory is D / 32 panels of [rows, 32]: lines of 64 bytes, whose 16-byte pieces are
// permuted so that eight neighbouring lines lie in different banks (the 64-byte swizzle). So D may be 64, 96 or 128.
#pragma once

#include <cuda.h>

#include "kernels/cuda/common/mma.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TMAMBA_HAS_WGMMA 1
#else
#define TMAMBA_HAS_WGMMA 0
#endif

namespace tmamba::cuda {

inline constexpr int kWarpGroup = 4 * kWarp;
inline constexpr int kPanelCols = 32, kPanelLine = kPanelCols * 2;  // bytes of a panel's line
inline constexpr int kPanelAlign = 1024;

template <int kRows>
inline constexpr int kPanelBytes = kRows* kPanelLine;

// The element of a tile [kRows, D].
template <int kRows>
__device__ inline int panel_index(int row, int col) {
  const int piece = (col % kPanelCols / 8) ^ (row / 2 % 4);
  return col / kPanelCols * (kRows * kPanelCols) + row * kPanelCols + piece * 8 + col % 8;
}

// --- Barriers in shared memory
// ------------------------------------------------------------------------------------------

struct Barrier {
  uint64_t state;

  __device__ void init(int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(count) : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  // The phase also waits for this many bytes from the copy engine.
  __device__ void expect(int bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }
  // Waits for the end of the phase of this parity.
  __device__ void wait(uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
  }
};

// Behind the inits, before the barrier that tells the block of them.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}
// Ordinary writes to shared memory before it are seen by tensor cores and the copy engine behind the next barrier.
__device__ inline void publish_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- Copies
// -------------------------------------------------------------------------------------------------------------

// What the copy engine needs to know of a tensor [B, T, H, D] to fetch panels of `rows` tokens. Rows beyond T read as
// zeros. Needs wide_rows().
CUtensorMap panel_map(const Cubes<const bf16_t>& x, int64_t B, int64_t T, int64_t H, int64_t D, int rows);

__device__ inline void fetch_panel(bf16_t* to, const CUtensorMap& map, Barrier& full, int col, int h, int row, int b) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
      :
      : "r"(shared_address(to)), "l"(&map), "r"(shared_address(&full)), "r"(col), "r"(h), "r"(row), "r"(b)
      : "memory");
}

// `bytes` consecutive bytes; all a multiple of 16.
__device__ inline void fetch_bytes(void* to, const void* from, int bytes, Barrier& full) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :
               : "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(&full))
               : "memory");
}

// A tile [kRows, D] of a tensor, of which rows [0, end) exist. Where `wide`, one thread calls it and the copy engine
// does the work, which `full` must expect; elsewhere every thread of a warpgroup does. Both arrive at `full` then.
template <int kRows, int D>
__device__ inline void fetch_tile(bf16_t* tile, const CUtensorMap& map, const Cubes<const bf16_t>& from, Barrier& full,
                                  int64_t b, int64_t h, int64_t row, int64_t end, bool wide) {
  if (wide) {
#pragma unroll
    for (int panel = 0; panel < D / kPanelCols; ++panel) {
      fetch_panel(tile + panel * kRows * kPanelCols, map, full, panel * kPanelCols, static_cast<int>(h),
                  static_cast<int>(row), static_cast<int>(b));
    }
    return;
  }
  for (int i = threadIdx.x % kWarpGroup; i < kRows * D; i += kWarpGroup) {
    const int r = i / D, c = i % D;
    tile[panel_index<kRows>(r, c)] = row + r < end ? from.at(b, row + r, h)[c] : bf16_t{};
  }
  publish_writes();
}

// --- Registers
// ----------------------------------------------------------------------------------------------------------

// The warpgroup gives registers back, or takes what others gave back.
template <int kCount>
__device__ inline void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// --- Products: begin, products, commit, wait
// --------------------------------------------------------------------------------

// Behind ordinary writes of registers that the next products use.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most kPending groups of products are under way; then the given accumulators may be read.
template <int kPending, class... Acc>
__device__ inline void wait_products(Acc&... accs) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  const auto touch = [](auto& acc) {
    for (auto& quad : acc) asm volatile("" : "+f"(quad[0]), "+f"(quad[1]), "+f"(quad[2]), "+f"(quad[3])::"memory");
  };
  (touch(accs), ...);
}

// Where a factor lies. kMajorK: [m or n, k], k along the panel's lines; else [k, m or n].
template <bool kMajorK, int kRows>
struct Factor {
  uint64_t bits;

  __device__ explicit Factor(const bf16_t* tile, int row = 0) {
    constexpr uint64_t kSwizzle64 = uint64_t{2} << 62;
    constexpr uint64_t kEightLines = 8 * kPanelLine / 16;               // distance of groups of eight lines
    constexpr uint64_t kPanel = kMajorK ? 1 : kPanelBytes<kRows> / 16;  // distance of panels along m or n
    const uint64_t address = (shared_address(tile) + row * kPanelLine) / 16;
    bits = address | kPanel << 16 | kEightLines << 32 | kSwizzle64;
  }
  // Of the k-th 16 columns (rows) of the tile.
  __device__ uint64_t at(int k) const {
    return bits + (kMajorK ? k / 2 * (kPanelBytes<kRows> / 16) + k % 2 * 2 : k * 16 * kPanelLine / 16);
  }
};

#define TMAMBA_ACC4(n) "+f"(acc[n][0]), "+f"(acc[n][1]), "+f"(acc[n][2]), "+f"(acc[n][3])
#define TMAMBA_ACC16(n) TMAMBA_ACC4(n), TMAMBA_ACC4(n + 1), TMAMBA_ACC4(n + 2), TMAMBA_ACC4(n + 3)
#define TMAMBA_REG16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define TMAMBA_REG32 TMAMBA_REG16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define TMAMBA_REG48 TMAMBA_REG32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define TMAMBA_REG64 TMAMBA_REG48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// acc [64, N] = a b, or += where `adds`. From shared memory (a0 .. a5: numbers of the operands behind acc):
#define TMAMBA_WGMMA_SS(N, regs, a0, a1, a2, a3, a4, ...)                                                    \
  template <bool kMajorA, bool kMajorB>                                                                      \
  __device__ inline void wgmma(float(&acc)[N / 8][4], uint64_t a, uint64_t b, bool adds) {                   \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %" #a2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N \
                 "k16.f32.bf16.bf16 {" regs "}, %" #a0 ", %" #a1 ", adds, 1, 1, %" #a3 ", %" #a4 ";\n}\n"    \
                 : __VA_ARGS__                                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(adds)), "n"(kMajorA ? 0 : 1), "n"(kMajorB ? 0 : 1)); \
  }
// With a [64, 16] in registers, as fragments of each warp's 16 rows:
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

// acc [64, N] = a b (or += where `adds`) over kSteps times 16 columns of a.
template <int kSteps, int kN, bool kMajorA, int kRowsA, bool kMajorB, int kRowsB>
__device__ inline void group_product(float (&acc)[kN][4], const Factor<kMajorA, kRowsA>& a,
                                     const Factor<kMajorB, kRowsB>& b, bool adds) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) wgmma<kMajorA, kMajorB>(acc, a.at(k), b.at(k), adds || k > 0);
}
template <int kSteps, int kN, bool kMajorB, int kRowsB>
__device__ inline void group_product(float (&acc)[kN][4], const uint32_t (&a)[kSteps][4],
                                     const Factor<kMajorB, kRowsB>& b, bool adds) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) wgmma<kMajorB>(acc, a[k], b.at(k), adds || k > 0);
}

// --- Accumulators
// -------------------------------------------------------------------------------------------------------

// Of a warpgroup's 64 rows a thread holds accumulator_row() and the eighth after it; acc[n] are their columns
// 8 n + accumulator_column() and the next.
[[maybe_unused]] __device__ inline int accumulator_row() {
  return threadIdx.x % kWarpGroup / kWarp * 16 + threadIdx.x % kWarp / 4;
}
[[maybe_unused]] __device__ inline int accumulator_column() { return threadIdx.x % 4 * 2; }

// Rounded to bfloat16, as fragments of a left factor.
template <int kN>
__device__ inline void round_factor(uint32_t (&to)[kN / 2][4], const float (&from)[kN][4]) {
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      to[k][e] = pack_bf16(from[2 * k + e / 2][e % 2 * 2], from[2 * k + e / 2][e % 2 * 2 + 1]);
    }
  }
}

// words[n] of four neighbouring lanes: lane i then holds words[i] of lanes 0 .. 3.
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

// Writes the thread's row (its second where kHalf) of accumulators to the row `out` in pieces of 16 bytes. All lanes of
// a warp call it; `here`: whether this one's row exists.
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
