// AdamW over a list of tensors, hundreds of them per launch.
#include <algorithm>

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/tensor_list.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops/adamw_rule.h"
#include "kernels/ops/check_step.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlock = 8192;  // elements that one block updates
constexpr int kAtOnce = 2;        // vectors that a thread loads before it updates them
constexpr int kTensors = 256;     // per launch: the list is a kernel parameter

template <class T>
struct List {
  struct Entry {
    T *master, *m, *v;
    const T* grad;
    void* param;  // null if the parameter is the master itself
    int64_t count, first_block;
    DType param_dtype;
    bool decays, aligned16;
  };
  int entries = 0;
  int64_t blocks = 0;
  Entry entry[kTensors];
};

template <class To, class T, int N>
__device__ void store_rounded(void* param, int64_t at, const Raw<T, N>& master, int64_t left, bool aligned16) {
  To* to = static_cast<To*>(param) + at;
  if constexpr (std::is_same_v<To, bf16_t> && N == 4) {
    if (aligned16 && left >= N) {
      *reinterpret_cast<uint2*>(to) = {pack_bf16(master[0], master[1]), pack_bf16(master[2], master[3])};
      return;
    }
  }
#pragma unroll
  for (int e = 0; e < N; ++e) {
    if (e < left) to[e] = narrow<To>(master[e]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const __grid_constant__ List<T> list, AdamwRule rule, const StepScalars* step) {
  constexpr int V = kVec<T>;
  if (step->applied == 0) return;
  const AdamwCoefficients<T> k(rule, *step);
  const typename List<T>::Entry& x = list.entry[entry_with_block(list, blockIdx.x)];
  const int64_t begin = (blockIdx.x - x.first_block) * kBlock;
  const int64_t end = begin + kBlock < x.count ? begin + kBlock : x.count;
  const T decay = x.decays ? k.decay : T(0);
  for (int64_t first = begin + threadIdx.x * V; first < end; first += kAtOnce * kThreads * V) {
    Raw<T> master[kAtOnce], m[kAtOnce], v[kAtOnce], grad[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int64_t i = first + u * kThreads * V, left = end - i;
      master[u] = load(x.master + i, left, x.aligned16), m[u] = load(x.m + i, left, x.aligned16);
      v[u] = load(x.v + i, left, x.aligned16), grad[u] = load(x.grad + i, left, x.aligned16);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int64_t i = first + u * kThreads * V, left = end - i;
      if (left <= 0) break;
#pragma unroll
      for (int e = 0; e < V; ++e) adamw_update(master[u].v[e], m[u].v[e], v[u].v[e], grad[u][e], decay, k);
      store(x.master + i, master[u], left, x.aligned16);
      store(x.m + i, m[u], left, x.aligned16);
      store(x.v + i, v[u], left, x.aligned16);
      if (x.param == nullptr) continue;
      if (x.param_dtype == DType::bf16) store_rounded<bf16_t>(x.param, i, master[u], left, x.aligned16);
      if (x.param_dtype == DType::f32) store_rounded<float>(x.param, i, master[u], left, x.aligned16);
      if (x.param_dtype == DType::f64) store_rounded<double>(x.param, i, master[u], left, x.aligned16);
    }
  }
}

__global__ void check_step_kernel(StepScalars* step, const StepSums* sums, const StepLimits* limits) {
  decide_step(*step, *sums, *limits);
}

template <class T>
typename List<T>::Entry entry_of(const AdamwTensor& x, int64_t first_block) {
  uint64_t addresses = 0;
  for (const void* p : {static_cast<const void*>(x.param.raw()), static_cast<const void*>(x.master.raw()),
                        static_cast<const void*>(x.m.raw()), static_cast<const void*>(x.v.raw()), x.grad.raw()}) {
    addresses |= reinterpret_cast<uint64_t>(p);
  }
  return {x.master.data<T>(),
          x.m.data<T>(),
          x.v.data<T>(),
          x.grad.data<T>(),
          x.param.raw() == x.master.raw() ? nullptr : x.param.raw(),
          x.master.numel(),
          first_block,
          x.param.dtype(),
          x.decay,
          addresses % 16 == 0};
}

template <class T>
void run(cudaStream_t stream, std::span<const AdamwTensor> tensors, const AdamwRule& rule, const StepScalars* step) {
  List<T> list;
  const auto flush = [&] {
    launch(stream, {list.blocks}, kThreads, 0, adamw_kernel<T>, list, rule, step);
    list.entries = 0, list.blocks = 0;
  };
  for (const AdamwTensor& x : tensors) {
    if (x.master.dtype() != DTypeOf<T>::value || x.master.numel() == 0) continue;
    if (list.entries == kTensors) flush();
    list.entry[list.entries++] = entry_of<T>(x, list.blocks);
    list.blocks += ceil_div(x.master.numel(), kBlock);
  }
  flush();
}

}  // namespace

void CudaOps::check_step(const CheckStep& args) {
  check_args(Device::cuda, args);
  launch(stream(), {}, 1, 0, check_step_kernel, scalars_in<StepScalars>(args.step_S), scalars_in<StepSums>(args.sums_S),
         scalars_in<StepLimits>(args.limits_S));
}

void CudaOps::adamw(const Adamw& args) {
  check_args(Device::cuda, args);
  run<float>(stream(), args.tensors, args.rule, scalars_in<StepScalars>(args.step_S));
  run<double>(stream(), args.tensors, args.rule, scalars_in<StepScalars>(args.step_S));
}

}  // namespace tmamba::cuda
