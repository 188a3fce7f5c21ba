// Cross-entropy: one block per row of logits, read once for the statistics and once, in place, for the gradient.
#include <limits>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/views.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 512;

// sum exp(x - max) over some numbers, and their maximum.
template <class A>
struct Softmax {
  using T = Acc<A>;
  T max, sum;

  __device__ void join(const Softmax& other) {
    const T larger = max > other.max ? max : other.max;
    sum = scaled(larger) + other.scaled(larger);
    max = larger;
  }
  // The sum relative to another maximum; two empty sets have no finite one.
  __device__ T scaled(T to) const { return max == to ? sum : sum * exp_of<A>(max - to); }
};

template <class A>
struct Stats {
  Acc<A>*max, *sum_exp, *target;
  Rows<const A> logits;
  const int32_t* targets;
  int64_t V, vocab_begin;
  bool wide;
};

template <class A>
__global__ void __launch_bounds__(kThreads) stats_kernel(Stats<A> f) {
  __shared__ Softmax<A> scratch[kThreads / kWarp];
  const int64_t n = blockIdx.x;
  const A* row = f.logits[n];
  Softmax<A> all{-std::numeric_limits<Acc<A>>::infinity(), 0};
#pragma unroll 2
  for (int64_t v = threadIdx.x * kVec<A>; v < f.V; v += kThreads * kVec<A>) {
    const int64_t left = f.V - v;
    const Raw<A> x = load(row + v, left, f.wide);
    Softmax<A> part{widen(x.v[0]), 0};
#pragma unroll
    for (int e = 1; e < kVec<A>; ++e) {
      if (e < left && x[e] > part.max) part.max = x[e];
    }
#pragma unroll
    for (int e = 0; e < kVec<A>; ++e) part.sum += e < left ? exp_of<A>(x[e] - part.max) : Acc<A>(0);
    all.join(part);
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    all.join({__shfl_xor_sync(0xFFFFFFFFu, all.max, step), __shfl_xor_sync(0xFFFFFFFFu, all.sum, step)});
  }
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = all;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads / kWarp; ++i) all.join(scratch[i]);
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

// One block: the rows are few beside their logits.
template <class T>
__global__ void __launch_bounds__(kThreads) loss_kernel(Loss<T> f) {
  __shared__ double scratch[kThreads / kWarp];
  double sum = 0, count = 0;
  for (int64_t n = threadIdx.x; n < f.N; n += kThreads) {
    const bool counts = f.targets[n] >= 0;
    const T value = counts ? f.max[n] + log(f.sum_exp[n]) - f.target[n] : T(0);
    if (f.loss != nullptr) f.loss[n] = value;
    sum += static_cast<double>(value);
    count += counts ? 1 : 0;
  }
  sum = block_sum<kThreads>(sum, scratch);
  count = block_sum<kThreads>(count, scratch);
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
  bool wide;
};

template <class A>
__global__ void __launch_bounds__(kThreads) gradient_kernel(Gradient<A> f) {
  const int64_t n = blockIdx.x;
  A* row = f.logits[n];
  const int32_t target = f.targets[n];
  const int64_t column = target - f.vocab_begin;
  const Acc<A> max = f.max[n], factor = f.scale / f.sum_exp[n];
#pragma unroll 2
  for (int64_t v = threadIdx.x * kVec<A>; v < f.V; v += kThreads * kVec<A>) {
    const int64_t left = f.V - v;
    Raw<A> out{};
    if (target >= 0) {
      const Raw<A> x = load(row + v, left, f.wide);
#pragma unroll
      for (int e = 0; e < kVec<A>; ++e) {
        const Acc<A> p = exp_of<A>(x[e] - max) * factor;
        out.v[e] = narrow<A>(v + e == column ? p - f.scale : p);
      }
    }
    store(row + v, out, left, f.wide);
  }
}

}  // namespace

void CudaOps::cross_entropy_stats(Tensor max_N, Tensor sum_exp_N, Tensor target_N, ConstTensor logits_NV,
                                  ConstTensor targets_N, int64_t vocab_begin) {
  const int64_t N = logits_NV.size(0), V = logits_NV.size(1);
  const DType acc = accumulate_type(logits_NV.dtype());
  expect(max_N, "cross_entropy max_N", acc, {N});
  expect(sum_exp_N, "cross_entropy sum_exp_N", acc, {N});
  expect(target_N, "cross_entropy target_N", acc, {N});
  expect(logits_NV, "cross_entropy logits_NV", logits_NV.dtype(), {N, V});
  expect(targets_N, "cross_entropy targets_N", DType::i32, {N});
  if (N == 0) return;
  const bool wide = wide_rows({logits_NV});
  dispatch_activation(logits_NV.dtype(), [&]<class A>() {
    const Stats<A> f{max_N.data<Acc<A>>(),
                     sum_exp_N.data<Acc<A>>(),
                     target_N.data<Acc<A>>(),
                     rows<A>(logits_NV),
                     targets_N.data<int32_t>(),
                     V,
                     vocab_begin,
                     wide};
    launch(stream(), {N}, kThreads, 0, stats_kernel<A>, f);
  });
}

void CudaOps::cross_entropy_rescale(Tensor sum_exp_N, ConstTensor max_N, ConstTensor global_max_N) {
  const int64_t N = max_N.size(0);
  const DType acc = max_N.dtype();
  expect(sum_exp_N, "cross_entropy_rescale sum_exp_N", acc, {N});
  expect(max_N, "cross_entropy_rescale max_N", acc, {N});
  expect(global_max_N, "cross_entropy_rescale global_max_N", acc, {N});
  dispatch_float(acc, [&]<class T>() {
    launch(stream(), {ceil_div(N, kThreads)}, kThreads, 0, rescale_kernel<T>, sum_exp_N.data<T>(), max_N.data<T>(),
           global_max_N.data<T>(), N);
  });
}

void CudaOps::cross_entropy_loss(Tensor loss_sum_1, Tensor count_1, Tensor loss_N, ConstTensor max_N,
                                 ConstTensor sum_exp_N, ConstTensor target_N, ConstTensor targets_N) {
  const int64_t N = max_N.size(0);
  const DType acc = max_N.dtype();
  expect(loss_sum_1, "cross_entropy loss_sum_1", DType::f64, {1});
  expect(count_1, "cross_entropy count_1", DType::f64, {1});
  expect_optional(loss_N, "cross_entropy loss_N", acc, {N});
  expect(max_N, "cross_entropy max_N", acc, {N});
  expect(sum_exp_N, "cross_entropy sum_exp_N", acc, {N});
  expect(target_N, "cross_entropy target_N", acc, {N});
  expect(targets_N, "cross_entropy targets_N", DType::i32, {N});
  if (N == 0) return;
  dispatch_float(acc, [&]<class T>() {
    const Loss<T> f{loss_sum_1.data<double>(), count_1.data<double>(), vector_of<T>(loss_N),      max_N.data<T>(),
                    sum_exp_N.data<T>(),       target_N.data<T>(),     targets_N.data<int32_t>(), N};
    launch(stream(), {}, kThreads, 0, loss_kernel<T>, f);
  });
}

void CudaOps::cross_entropy_gradient(Tensor logits_NV, ConstTensor max_N, ConstTensor sum_exp_N, ConstTensor targets_N,
                                     int64_t vocab_begin, double scale) {
  const int64_t N = logits_NV.size(0), V = logits_NV.size(1);
  const DType acc = accumulate_type(logits_NV.dtype());
  expect(logits_NV, "cross_entropy logits_NV", logits_NV.dtype(), {N, V});
  expect(max_N, "cross_entropy max_N", acc, {N});
  expect(sum_exp_N, "cross_entropy sum_exp_N", acc, {N});
  expect(targets_N, "cross_entropy targets_N", DType::i32, {N});
  if (N == 0) return;
  const bool wide = wide_rows({logits_NV});
  dispatch_activation(logits_NV.dtype(), [&]<class A>() {
    const Gradient<A> f{rows<A>(logits_NV),
                        max_N.data<Acc<A>>(),
                        sum_exp_N.data<Acc<A>>(),
                        targets_N.data<int32_t>(),
                        V,
                        vocab_begin,
                        static_cast<Acc<A>>(scale),
                        wide};
    launch(stream(), {N}, kThreads, 0, gradient_kernel<A>, f);
  });
}

}  // namespace tmamba::cuda
