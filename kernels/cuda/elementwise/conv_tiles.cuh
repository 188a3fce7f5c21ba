// The convolution's tiles in shared memory: copies in and out, and each thread's channels of a row.
#pragma once

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/elementwise/conv.cuh"

namespace tmamba::cuda {

// A thread's channels.
template <class A>
struct Group {
  Acc<A> v[kWidth<A>];
};

// The same in storage type; for bfloat16 each half is one register.
template <class A>
struct StoredGroup {
  A lower, upper;
  __device__ Group<A> widened() const { return {lower, upper}; }
  __device__ static StoredGroup rounded(const Group<A>& x) { return {x.v[0], x.v[1]}; }
};
template <>
struct alignas(8) StoredGroup<bf16_t> {
  uint32_t lower, upper;
  __device__ Group<bf16_t> widened() const {
    return {low_bf16(lower), high_bf16(lower), low_bf16(upper), high_bf16(upper)};
  }
  __device__ static StoredGroup rounded(const Group<bf16_t>& x) {
    return {pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3])};
  }
};

// Stores the two halves, `upper` channels apart; only channels below `left` exist. `whole`: all exist and both halves
// are aligned.
template <class A>
__device__ void store_group(A* to, int upper, const StoredGroup<A>& x, int64_t left, bool whole) {
  if (whole) {
    using Half = decltype(StoredGroup<A>::lower);
    *reinterpret_cast<Half*>(to) = x.lower;
    *reinterpret_cast<Half*>(to + upper) = x.upper;
    return;
  }
  const A* const from = reinterpret_cast<const A*>(&x);
#pragma unroll
  for (int e = 0; e < kWidth<A>; ++e) {
    const int at = e < kHalf<A> ? e : upper + (e - kHalf<A>);
    if (at < left) to[at] = from[e];
  }
}

// A tensor's tiles in shared memory: this thread's part of the copies, and access to its own channels.
template <class A, int kThreads, bool kRope>
class Tiles {
 public:
  static constexpr int kChannels = kThreads * kWidth<A>;
  static constexpr size_t kBytes = sizeof(A) * kStages * kTile * kChannels;

  // This thread copies kVec<A> channels, from the block's column() on, of every kRows-th row from row() on.
  static constexpr int kVectors = kChannels / kVec<A>, kRows = kThreads / kVectors, kPasses = kTile / kRows;
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kVectors; }
  __device__ static int column() { return static_cast<int>(threadIdx.x) % kVectors * kVec<A>; }
  // The number of the block's channels from column() on.
  __device__ static int64_t left(const Conv<A>& conv, const Place<A, kRope>& place) {
    const int64_t in_tensor = conv.C - place.first;
    return (in_tensor < conv.span ? in_tensor : conv.span) - column();
  }

  // `from`: the first element that this thread copies of the strip's first tile.
  __device__ Tiles(void* shared, int tensor, const Place<A, kRope>& place, const A* from)
      : tiles_(reinterpret_cast<A*>(shared) + tensor * kStages * kTile * kChannels),
        own_(tiles_ + place.offset),
        upper_(place.upper),
        from_(from) {}

  // Starts to load the next tile into `stage`: `rows` of its tokens exist, `stride` apart, the others become zeros.
  // `left`: see left(). `aligned16`: see rows_aligned16().
  __device__ void start(int stage, int rows, int64_t stride, int64_t left, bool aligned16) {
    A* const to = vector(stage);
    const A* from = from_;
    from_ += kTile * stride;
    if (left <= 0) return;
    if (aligned16 && left >= kVec<A> && rows >= kTile) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass, from += kRows * stride) {
        cp_async_16(to + pass * kRows * kChannels, from, true);
      }
    } else {
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass, from += kRows * stride) {
        const bool here = row() + pass * kRows < rows;
        *reinterpret_cast<Raw<A>*>(to + pass * kRows * kChannels) = load(from, here ? left : 0, aligned16);
      }
    }
  }

  // Stores rows [begin, end) of the tile in `stage`; `to` is the address for this thread's first row. A thread stores
  // the vectors that its start() fills, so it may call flush() and then start() without a barrier.
  __device__ void flush(int stage, A* to, int64_t stride, int begin, int end, int64_t left, bool aligned16) const {
    if (left <= 0) return;
    const A* const from = vector(stage);
    if (aligned16 && left >= kVec<A> && begin <= 0 && end >= kTile) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass, to += kRows * stride) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from + pass * kRows * kChannels);
      }
    } else {
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass, to += kRows * stride) {
        const int at = row() + pass * kRows;
        if (at < begin || at >= end) continue;
        store(to, *reinterpret_cast<const Raw<A>*>(from + pass * kRows * kChannels), left, aligned16);
      }
    }
  }

  // Reads this thread's channels of row `row`.
  __device__ StoredGroup<A> at(int stage, int row) const {
    const A* const from = own_ + (stage * kTile + row) * kChannels;
    if constexpr (kRope) {
      using Half = decltype(StoredGroup<A>::lower);
      return {*reinterpret_cast<const Half*>(from), *reinterpret_cast<const Half*>(from + upper_)};
    } else {
      return *reinterpret_cast<const StoredGroup<A>*>(from);
    }
  }
  // Replaces this thread's channels of row `row`.
  __device__ void put(int stage, int row, const StoredGroup<A>& x) {
    A* const to = own_ + (stage * kTile + row) * kChannels;
    if constexpr (kRope) {
      store_group(to, upper_, x, 0, true);
    } else {
      *reinterpret_cast<StoredGroup<A>*>(to) = x;
    }
  }

 private:
  __device__ A* vector(int stage) const { return tiles_ + (stage * kTile + row()) * kChannels + column(); }

  A *tiles_, *own_;
  int upper_;
  const A* from_;
};

// For each tile of the rows [0, rows) of the strip, calls start(stage, first row) kStages - 1 tiles ahead, f(stage,
// first row) when the tile has arrived, and finish(stage, first row) when all threads have returned from f. Calls
// begin() once, after the first starts.
template <class Start, class Begin, class F, class Finish>
__device__ void for_each_tile(int rows, const Start& start, const Begin& begin, const F& f, const Finish& finish) {
#pragma unroll
  for (int ahead = 0; ahead < kStages - 1; ++ahead) {
    if (ahead * kTile < rows) start(ahead, ahead * kTile);
    cp_async_commit();
  }
  begin();
  int stage = 0, previous = kStages - 1;  // the stage in use, and the previous one
  for (int row = 0; row < rows; row += kTile) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // the tile has arrived for all threads, and all are done with the previous one
    if (row > 0) finish(previous, row - kTile);
    if (row + (kStages - 1) * kTile < rows) start(previous, row + (kStages - 1) * kTile);
    cp_async_commit();
    f(stage, row);
    previous = stage;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  __syncthreads();
  finish(previous, (rows - 1) / kTile * kTile);
}

}  // namespace tmamba::cuda
