// A thread's own numbers on their way through shared memory: pieces of 16 bytes, asked for some rounds before they are
// needed. No other thread sees them, so no barrier is needed.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/mma.cuh"

namespace tmamba::cuda {

// kPieces of each of kStages rounds, of a block of at most kThreads threads.
template <class A, int kThreads, int kPieces, int kStages>
class Ring {
 public:
  static constexpr size_t kBytes = sizeof(uint4) * kThreads * kPieces * kStages;

  __device__ explicit Ring(void* shared) : own_(reinterpret_cast<uint4*>(shared) + threadIdx.x) {}

  // Starts to load a piece, of which `left` elements are there, zeros beyond. `wide` as wide_rows() says.
  __device__ void start(int stage, int piece, const A* from, int64_t left, bool wide) {
    uint4* const to = own_ + (stage * kPieces + piece) * kThreads;
    if (wide && left >= kVec<A>) {
      copy_async_16(to, from, true);
    } else {
      *reinterpret_cast<Raw<A>*>(to) = load(from, left, false);
    }
  }

  // Starts to load a whole piece from an aligned place; zeros where it is not `there`.
  __device__ void start_whole(int stage, int piece, const A* from, bool there) {
    copy_async_16(own_ + (stage * kPieces + piece) * kThreads, from, there);
  }

  // Behind the start() of each round, and before the round's pieces are read: kStages - 1 rounds are on their way.
  __device__ static void commit() { commit_copies(); }
  __device__ static void wait() { wait_copies<kStages - 1>(); }

  // Reads from shared memory each time, so that two passes over the numbers need no registers to keep them.
  __device__ Raw<A> at(int stage, int piece) const {
    Raw<A> out;
    uint4& x = reinterpret_cast<uint4&>(out);
    asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(shared_address(own_ + (stage * kPieces + piece) * kThreads))
                 : "memory");
    return out;
  }

 private:
  uint4* own_;
};

}  // namespace tmamba::cuda
