// Cross-entropy. One block per row of logits, which is read once for the statistics and once for the in-place gradient.
#include <limits>

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 5;  // several, so that some read while others begin or end their rows
constexpr int kVectors = 4;      // 16-byte vectors of a row that a thread loads at a time
constexpr int kLossThreads = 1024;

// The maximum of a set of values, and the sum of exp(x - max) over it.
template <class A>
struct Softmax {
  using T = Acc<A>;
  T max, sum;

  __device__ void merge(const Softmax& other) {
    const T larger = max > other.max ? max : other.max;
    sum = scaled(larger) + other.scaled(larger);
    max = larger;
  }
  // The sum relative to another maximum. The comparison avoids -inf - -inf for two empty sets.
  __device__ T scaled(T to) const { return max == to ? sum : sum * exp_of<A>(max - to); }
};

template <class A>
struct Stats {
  Acc<A>*max, *sum_exp, *target;
  Rows<const A> logits;
  const int32_t* targets;
  int64_t V, vocab_begin;
  bool aligned16;
};

// Calls f(v, x) for this thread's part of a row of V columns, kVectors vectors at a time, all loaded before the first
// is used; vector x[i] begins at column v + i * kThreads * kVec<A>.
template <class A, class F>
__device__ void for_each_vector(const A* row, int64_t V, bool aligned16, const F& f) {
  constexpr int kStep = kThreads * kVec<A>;
  for (int64_t v = threadIdx.x * kVec<A>; v < V; v += kVectors * kStep) {
    Raw<A> x[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) x[i] = load(row + v + i * kStep, V - v - i * kStep, aligned16);
    f(v, x);
  }
}

// The statistics of the vectors of one call of f, of which `left` columns exist: at least one, all of them if kWhole.
template <class A, bool kWhole>
__device__ Softmax<A> softmax_of(const Raw<A> (&x)[kVectors], int64_t left) {
  const auto at = [&](int i, int e) {
    const bool here = kWhole || i * kThreads * kVec<A> + e < left;
    return here ? x[i][e] : -std::numeric_limits<Acc<A>>::infinity();
  };
  Softmax<A> part{x[0][0], 0};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < kVec<A>; ++e) part.max = max(part.max, at(i, e));
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < kVec<A>; ++e) part.sum += exp_of<A>(at(i, e) - part.max);
  }
  return part;
}

template <class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 2 ? kBlocksPerSm : 1)
    stats_kernel(const __grid_constant__ Stats<A> f) {
  __shared__ Softmax<A> scratch[kThreads / kWarp];
  const int64_t n = blockIdx.x;
  const A* row = f.logits[n];
  Softmax<A> all{-std::numeric_limits<Acc<A>>::infinity(), 0};
  for_each_vector(row, f.V, f.aligned16, [&](int64_t v, const Raw<A>(&x)[kVectors]) {
    const int64_t left = f.V - v;
    const bool whole = left >= (kVectors - 1) * kThreads * kVec<A> + kVec<A>;
    all.merge(whole ? softmax_of<A, true>(x, left) : softmax_of<A, false>(x, left));
  });
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    all.merge({__shfl_xor_sync(0xFFFFFFFFu, all.max, step), __shfl_xor_sync(0xFFFFFFFFu, all.sum, step)});
  }
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = all;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads / kWarp; ++i) all.merge(scratch[i]);
  f.max[n] = all.max;
  f.sum_exp[n] = all.sum;
  const int64_t column = f.targets[n] - f.vocab_begin;
  f.target[n] = f.targets[n] >= 0 && column >= 0 && column < f.V ? widen(row[column]) : Acc<A>(0);
}

template <class T>
__global__ void __launch_bounds__(kThreads) rescale_kernel(T* sum_exp, const T* max, const T* global_max, int64_t N) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n < N) sum_exp[n] *= exp(max[n] - global_max[n]);
}

template <class T>
struct Loss {
  double *loss_sum, *count;
  T* loss;
  const T *max, *sum_exp, *target;
  const int32_t* targets;
  int64_t N;
};

// One block: there are few rows compared with logits.
template <class T>
__global__ void __launch_bounds__(kLossThreads) loss_kernel(Loss<T> f) {
  __shared__ double scratch[kLossThreads / kWarp];
  double sum = 0, count = 0;
#pragma unroll 4
  for (int64_t n = threadIdx.x; n < f.N; n += kLossThreads) {
    const bool counts = f.targets[n] >= 0;
    const T value = counts ? f.max[n] + log(f.sum_exp[n]) - f.target[n] : T(0);
    if (f.loss != nullptr) f.loss[n] = value;
    sum += static_cast<double>(value);
    count += counts ? 1 : 0;
  }
  sum = block_sum<kLossThreads>(sum, scratch);
  count = block_sum<kLossThreads>(count, scratch);
  if (threadIdx.x != 0) return;
  *f.loss_sum += sum;
  *f.count += count;
}

template <class A>
struct Gradient {
  Rows<A> logits;
  const Acc<A>*max, *sum_exp;
  const int32_t* targets;
  int64_t V, vocab_begin;
  Acc<A> scale;
  bool aligned16;
};

template <class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 2 ? kBlocksPerSm : 1)
    gradient_kernel(const __grid_constant__ Gradient<A> f) {
  constexpr int kStep = kThreads * kVec<A>;
  const int64_t n = blockIdx.x;
  A* row = f.logits[n];
  const int32_t target = f.targets[n];
  if (target < 0) {
    for (int64_t v = threadIdx.x * kVec<A>; v < f.V; v += kStep) store(row + v, Raw<A>{}, f.V - v, f.aligned16);
    return;
  }
  const int64_t column = target - f.vocab_begin;
  const Acc<A> max = f.max[n], factor = f.scale / f.sum_exp[n];
  for_each_vector(static_cast<const A*>(row), f.V, f.aligned16, [&](int64_t v, const Raw<A>(&x)[kVectors]) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t first = v + i * kStep;
      Acc<A> p[kVec<A>];
#pragma unroll
      for (int e = 0; e < kVec<A>; ++e) p[e] = exp_of<A>(x[i][e] - max) * factor;
      if (column >= first && column < first + kVec<A>) {
#pragma unroll
        for (int e = 0; e < kVec<A>; ++e) p[e] -= first + e == column ? f.scale : Acc<A>(0);
      }
      store(row + first, Raw<A>::rounded(p), f.V - first, f.aligned16);
    }
  });
}

}  // namespace

void CudaOps::cross_entropy_stats(const CrossEntropyStats& args) {
  const int64_t N = args.logits_NV.size(0), V = args.logits_NV.size(1);
  check_args(Device::cuda, args);
  if (N == 0) return;
  const bool aligned16 = rows_aligned16({args.logits_NV});
  dispatch_activation(args.logits_NV.dtype(), [&]<class A>() {
    const Stats<A> f{args.max_N.data<Acc<A>>(),
                     args.sum_exp_N.data<Acc<A>>(),
                     args.target_N.data<Acc<A>>(),
                     rows<A>(args.logits_NV),
                     args.targets_N.data<int32_t>(),
                     V,
                     args.vocab_begin,
                     aligned16};
    launch(stream(), {N}, kThreads, 0, stats_kernel<A>, f);
  });
}

void CudaOps::cross_entropy_rescale(const CrossEntropyRescale& args) {
  const int64_t N = args.max_N.size(0);
  check_args(Device::cuda, args);
  dispatch_float(args.max_N.dtype(), [&]<class T>() {
    launch(stream(), {ceil_div(N, kThreads)}, kThreads, 0, rescale_kernel<T>, args.sum_exp_N.data<T>(),
           args.max_N.data<T>(), args.global_max_N.data<T>(), N);
  });
}

void CudaOps::cross_entropy_loss(const CrossEntropyLoss& args) {
  const int64_t N = args.max_N.size(0);
  check_args(Device::cuda, args);
  if (N == 0) return;
  dispatch_float(args.max_N.dtype(), [&]<class T>() {
    const Loss<T> f{args.loss_sum_1.data<double>(), args.count_1.data<double>(),
                    vector_of<T>(args.loss_N),      args.max_N.data<T>(),
                    args.sum_exp_N.data<T>(),       args.target_N.data<T>(),
                    args.targets_N.data<int32_t>(), N};
    launch(stream(), {}, kLossThreads, 0, loss_kernel<T>, f);
  });
}

void CudaOps::cross_entropy_gradient(const CrossEntropyGradient& args) {
  const int64_t N = args.logits_NV.size(0), V = args.logits_NV.size(1);
  check_args(Device::cuda, args);
  if (N == 0) return;
  const bool aligned16 = rows_aligned16({args.logits_NV});
  dispatch_activation(args.logits_NV.dtype(), [&]<class A>() {
    const Gradient<A> f{rows<A>(args.logits_NV),
                        args.max_N.data<Acc<A>>(),
                        args.sum_exp_N.data<Acc<A>>(),
                        args.targets_N.data<int32_t>(),
                        V,
                        args.vocab_begin,
                        static_cast<Acc<A>>(args.scale),
                        aligned16};
    launch(stream(), {N}, kThreads, 0, gradient_kernel<A>, f);
  });
}

}  // namespace tmamba::cuda
