// Pipelines through shared memory: a producer fills one stage after another, consumers read and release them.
//   Pipeline        a producer warp (TMA or ordinary stores) and consumer warps, synchronised by mbarriers: Hopper only
//   ThreadPipeline  each thread copies its own data with cp.async; no barrier is needed
// The names are those of PTX and CUTLASS.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/mma.cuh"

namespace tmamba::cuda {

// --- Barriers in shared memory (mbarrier) ---

// A phase completes when the expected threads have arrived and the expected bytes have been written; phases alternate
// in parity, starting with 0.
struct TransactionBarrier {
  uint64_t state;

  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  // The current phase also waits for this many bytes of bulk copies.
  __device__ void expect_tx(int bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }
  // Blocks until the phase of this parity has completed.
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

// Makes initialised barriers visible to the asynchronous proxy. Called by the initialising thread, before the
// __syncthreads() after which other threads use the barriers.
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}
// Makes this thread's earlier ordinary writes to shared memory visible to wgmma and TMA after the next barrier.
__device__ inline void fence_view_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- Producer warp and consumer warps ---

// The stage of the n-th tile (n < 2^32), and the parity of the phase in which this stage becomes full.
template <int kStages>
struct PipelineState {
  int stage;
  uint32_t parity;
  __device__ explicit PipelineState(int64_t n) {
    const auto i = static_cast<uint32_t>(n);
    stage = static_cast<int>(i % kStages), parity = i / kStages % 2;
  }
};

// The barriers of kStages stages; the buffers belong to the kernel.
template <int kStages>
struct Pipeline {
  using State = PipelineState<kStages>;
  TransactionBarrier full[kStages], empty[kStages];

  // Arrivals that complete a phase: of producer threads, and of consumer warps (consumer_release()).
  __device__ void init(int producer_arrivals, int consumer_warps) {
    for (int i = 0; i < kStages; ++i) full[i].init(producer_arrivals), empty[i].init(consumer_warps);
  }

  // The producer waits until the consumers have released the stage's previous tile, then fills the stage and arrives at
  // producer_barrier().
  __device__ void producer_acquire(const State& state) { empty[state.stage].wait(state.parity ^ 1); }
  __device__ TransactionBarrier& producer_barrier(const State& state) { return full[state.stage]; }

  __device__ void consumer_wait(const State& state) { full[state.stage].wait(state.parity); }
  // Called by all lanes of a warp when the warp no longer reads the stage. The lanes must be converged.
  __device__ void consumer_release(const State& state) {
    if (threadIdx.x % kWarp == 0) empty[state.stage].arrive();
  }
};

// --- Copies of each thread for itself (cp.async) ---

// kStages stages of kVectors 16-byte vectors per thread, for blocks of at most kThreads threads. A thread reads only
// what it has loaded itself.
template <class A, int kThreads, int kVectors, int kStages>
class ThreadPipeline {
 public:
  static constexpr size_t kBytes = sizeof(uint4) * kThreads * kVectors * kStages;

  __device__ explicit ThreadPipeline(void* shared) : own_(reinterpret_cast<uint4*>(shared) + threadIdx.x) {}

  // Starts to load a vector of which `left` elements exist; the others become zero. `aligned16`: see rows_aligned16().
  __device__ void load_async(int stage, int vector, const A* from, int64_t left, bool aligned16) {
    uint4* const to = own_ + (stage * kVectors + vector) * kThreads;
    if (aligned16 && left >= kVec<A>) {
      cp_async_16(to, from, true);
    } else {
      *reinterpret_cast<Raw<A>*>(to) = load(from, left, false);
    }
  }

  // Starts to load a complete vector from a 16-byte aligned address; fills with zeros where `exists` is false.
  __device__ void load_full_async(int stage, int vector, const A* from, bool exists) {
    cp_async_16(own_ + (stage * kVectors + vector) * kThreads, from, exists);
  }

  // commit() ends the loads of one stage. wait() blocks until the oldest stage has arrived: kStages - 1 later ones may
  // be in flight.
  __device__ static void commit() { cp_async_commit(); }
  __device__ static void wait() { cp_async_wait<kStages - 1>(); }

  // Volatile: reads shared memory at each call, so that two passes over the data need no registers in between.
  __device__ Raw<A> at(int stage, int vector) const {
    Raw<A> out;
    uint4& x = reinterpret_cast<uint4&>(out);
    asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(shared_address(own_ + (stage * kVectors + vector) * kThreads))
                 : "memory");
    return out;
  }

 private:
  uint4* own_;
};

}  // namespace tmamba::cuda
