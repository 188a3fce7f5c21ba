#include <algorithm>

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kRowBlocks = 16384;

// A block computes kThreads vectors of columns of every gridDim.y-th row.
template <class A>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Rows<A> h, Rows<const A> gate_up, int64_t N, int64_t F, bool aligned16) {
  const int64_t f = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec<A>, left = F - f;
  if (left <= 0) return;
  for (int64_t n = blockIdx.y; n < N; n += gridDim.y) {
    const Raw<A> gate = load(gate_up[n] + f, left, aligned16), up = load(gate_up[n] + F + f, left, aligned16);
    Raw<A> out;
#pragma unroll
    for (int e = 0; e < kVec<A>; ++e) out.v[e] = narrow<A>(gate[e] * sigmoid<A>(gate[e]) * up[e]);
    store(h[n] + f, out, left, aligned16);
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Rows<A> dgate_up, Rows<const A> dh, Rows<const A> gate_up, int64_t N, int64_t F, bool aligned16) {
  const int64_t f = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec<A>, left = F - f;
  if (left <= 0) return;
  for (int64_t n = blockIdx.y; n < N; n += gridDim.y) {
    const Raw<A> gate = load(gate_up[n] + f, left, aligned16), up = load(gate_up[n] + F + f, left, aligned16);
    const Raw<A> d = load(dh[n] + f, left, aligned16);
    Raw<A> dgate, dup;
#pragma unroll
    for (int e = 0; e < kVec<A>; ++e) {
      const Acc<A> s = sigmoid<A>(gate[e]);
      dgate.v[e] = narrow<A>(d[e] * up[e] * s * (1 + gate[e] * (1 - s)));
      dup.v[e] = narrow<A>(d[e] * gate[e] * s);
    }
    store(dgate_up[n] + f, dgate, left, aligned16);
    store(dgate_up[n] + F + f, dup, left, aligned16);
  }
}

template <class A>
Grid grid_of(int64_t N, int64_t F) {
  return {ceil_div(F, kThreads * kVec<A>), std::min(N, kRowBlocks)};
}

}  // namespace

void CudaOps::swiglu_forward(const SwigluForward& args) {
  const int64_t N = args.h_NF.size(0), F = args.h_NF.size(1);
  check_args(Device::cuda, args);
  if (N * F == 0) return;
  const bool aligned16 = rows_aligned16({args.h_NF, args.gate_up_N2F});
  dispatch_activation(args.h_NF.dtype(), [&]<class A>() {
    launch(stream(), grid_of<A>(N, F), kThreads, 0, forward_kernel<A>, rows<A>(args.h_NF), rows<A>(args.gate_up_N2F), N,
           F, aligned16);
  });
}

void CudaOps::swiglu_backward(const SwigluBackward& args) {
  const int64_t N = args.dh_NF.size(0), F = args.dh_NF.size(1);
  check_args(Device::cuda, args);
  if (N * F == 0) return;
  const bool aligned16 = rows_aligned16({args.dgate_up_N2F, args.dh_NF, args.gate_up_N2F});
  dispatch_activation(args.dh_NF.dtype(), [&]<class A>() {
    launch(stream(), grid_of<A>(N, F), kThreads, 0, backward_kernel<A>, rows<A>(args.dgate_up_N2F), rows<A>(args.dh_NF),
           rows<A>(args.gate_up_N2F), N, F, aligned16);
  });
}

}  // namespace tmamba::cuda
