// RMSNorm: kGroup threads (a warp, or a whole block for wide rows) hold a row in registers.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/views.h"

namespace tmamba::cuda {

namespace {

constexpr int kNarrow = kWarp, kBroad = 512;

template <int kGroup>
constexpr int kBlock = kGroup == kNarrow ? 256 : kGroup;
template <int kGroup>
constexpr int kSteps = kGroup == kNarrow ? 8 : 4;  // 16-byte pieces of a row per thread

// Sum over the group that holds a row.
template <int kGroup, class T>
__device__ T group_sum(T x, T* scratch) {
  if constexpr (kGroup == kNarrow) {
    return warp_sum(x);
  } else {
    return block_sum<kGroup>(x, scratch);
  }
}

template <class A>
struct Forward {
  Rows<A> y, sum;
  Acc<A>* rstd;
  Rows<const A> x, delta;
  const A* w;
  int64_t N, C;
  double eps;
  bool wide;
};

template <class A, int kGroup>
__global__ void __launch_bounds__(kBlock<kGroup>) forward_kernel(Forward<A> f) {
  __shared__ Acc<A> scratch[kBroad / kWarp];
  constexpr int V = kVec<A>;
  const int lane = threadIdx.x % kGroup;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (kBlock<kGroup> / kGroup) + threadIdx.x / kGroup;
  if (n >= f.N) return;
  const bool adds = f.delta.data != nullptr;
  Raw<A> x[kSteps<kGroup>];
  Acc<A> squares = 0;
#pragma unroll
  for (int j = 0; j < kSteps<kGroup>; ++j) {
    const int64_t c = (lane + j * kGroup) * V, left = f.C - c;
    if (left <= 0) continue;
    x[j] = load(f.x[n] + c, left, f.wide);
    if (adds) {
      const Raw<A> delta = load(f.delta[n] + c, left, f.wide);
#pragma unroll
      for (int e = 0; e < V; ++e) x[j].v[e] = narrow<A>(x[j][e] + delta[e]);
      store(f.sum[n] + c, x[j], left, f.wide);
    }
#pragma unroll
    for (int e = 0; e < V; ++e) squares += x[j][e] * x[j][e];
  }
  squares = group_sum<kGroup>(squares, scratch);
  const Acc<A> rstd = 1 / sqrt(squares / static_cast<Acc<A>>(f.C) + static_cast<Acc<A>>(f.eps));
  if (lane == 0) f.rstd[n] = rstd;
#pragma unroll
  for (int j = 0; j < kSteps<kGroup>; ++j) {
    const int64_t c = (lane + j * kGroup) * V, left = f.C - c;
    if (left <= 0) continue;
    const Raw<A> w = load(f.w + c, left, f.wide);
    Raw<A> y;
#pragma unroll
    for (int e = 0; e < V; ++e) y.v[e] = narrow<A>(x[j][e] * rstd * w[e]);
    store(f.y[n] + c, y, left, f.wide);
  }
}

template <class A>
struct Backward {
  Rows<A> dx;
  Acc<A>* dw_partial;  // [lines, C]
  Rows<const A> dy, x;
  const Acc<A>* rstd;
  const A* w;
  Rows<const A> dresidual;
  int64_t N, C, rows_per_line;
  bool wide;
};

// A block takes the rows of one line; its threads keep their columns' share of dw.
template <class A, int kGroup>
__global__ void __launch_bounds__(kBlock<kGroup>) backward_kernel(Backward<A> f) {
  constexpr int V = kVec<A>, kGroups = kBlock<kGroup> / kGroup;
  __shared__ Acc<A> scratch[kGroup == kNarrow ? kGroups * kWarp * V : kBroad / kWarp];
  const int lane = threadIdx.x % kGroup, group = threadIdx.x / kGroup;
  const int64_t begin = blockIdx.x * f.rows_per_line;
  const int64_t end = begin + f.rows_per_line < f.N ? begin + f.rows_per_line : f.N;
  Acc<A> dw[kSteps<kGroup>][V] = {};
  for (int64_t n = begin + group; n < end; n += kGroups) {
    const Acc<A> rstd = f.rstd[n];
    Raw<A> x[kSteps<kGroup>], dy[kSteps<kGroup>];
    Acc<A> dot = 0;
#pragma unroll
    for (int j = 0; j < kSteps<kGroup>; ++j) {
      const int64_t c = (lane + j * kGroup) * V, left = f.C - c;
      if (left <= 0) continue;
      x[j] = load(f.x[n] + c, left, f.wide);
      dy[j] = load(f.dy[n] + c, left, f.wide);
    }
#pragma unroll
    for (int j = 0; j < kSteps<kGroup>; ++j) {
      const int64_t c = (lane + j * kGroup) * V, left = f.C - c;
      if (left <= 0) continue;
      const Raw<A> w = load(f.w + c, left, f.wide);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        dot += w[e] * dy[j][e] * x[j][e];
        dw[j][e] += dy[j][e] * x[j][e] * rstd;
      }
    }
    dot = group_sum<kGroup>(dot, scratch);
    const Acc<A> along = dot * rstd * rstd * rstd / static_cast<Acc<A>>(f.C);
#pragma unroll
    for (int j = 0; j < kSteps<kGroup>; ++j) {
      const int64_t c = (lane + j * kGroup) * V, left = f.C - c;
      if (left <= 0) continue;
      const Raw<A> w = load(f.w + c, left, f.wide);
      Raw<A> residual{}, dx;
      if (f.dresidual.data != nullptr) residual = load(f.dresidual[n] + c, left, f.wide);
#pragma unroll
      for (int e = 0; e < V; ++e) dx.v[e] = narrow<A>(residual[e] + (rstd * w[e] * dy[j][e] - x[j][e] * along));
      store(f.dx[n] + c, dx, left, f.wide);
    }
  }
  Acc<A>* line = f.dw_partial + blockIdx.x * f.C;
#pragma unroll
  for (int j = 0; j < kSteps<kGroup>; ++j) {
    const int64_t c = (lane + j * kGroup) * V;
    if constexpr (kGroup == kNarrow) {
      __syncthreads();
#pragma unroll
      for (int e = 0; e < V; ++e) scratch[(group * kWarp + lane) * V + e] = dw[j][e];
      __syncthreads();
      // Thread i adds up column i of the kWarp * V that the block holds in this step.
      const int i = threadIdx.x;
      const int64_t column = j * kGroup * V + i;
      if (i < kWarp * V && column < f.C) {
        Acc<A> sum = 0;
#pragma unroll
        for (int g = 0; g < kGroups; ++g) sum += scratch[g * kWarp * V + i];
        line[column] = sum;
      }
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (c + e < f.C) line[c + e] = dw[j][e];
      }
    }
  }
}

// Calls f.template operator()<kGroup>() with the threads that a row of C channels needs.
template <class A, class F>
void dispatch_group(int64_t C, const F& f) {
  constexpr int64_t kMost = int64_t{kBroad} * kSteps<kBroad> * kVec<A>;
  TM_CHECK(C <= kMost, "rmsnorm: rows of ", C, " channels, at most ", kMost, " are supported on the GPU");
  if (C <= int64_t{kNarrow} * kSteps<kNarrow> * kVec<A>) return f.template operator()<kNarrow>();
  f.template operator()<kBroad>();
}

}  // namespace

void CudaOps::rmsnorm_forward(Tensor y_NC, Tensor rstd_N, Tensor sum_NC, ConstTensor x_NC, ConstTensor delta_NC,
                              ConstTensor w_C, double eps) {
  const int64_t N = x_NC.size(0), C = x_NC.size(1);
  const DType dtype = x_NC.dtype();
  if (N == 0) return;
  expect(y_NC, "rmsnorm y_NC", dtype, {N, C});
  expect(rstd_N, "rmsnorm rstd_N", accumulate_type(dtype), {N});
  expect(x_NC, "rmsnorm x_NC", dtype, {N, C});
  expect_optional(delta_NC, "rmsnorm delta_NC", dtype, {N, C});
  expect_optional(sum_NC, "rmsnorm sum_NC", dtype, {N, C});
  TM_CHECK(sum_NC.empty() == delta_NC.empty(), "rmsnorm: sum_NC and delta_NC come together");
  expect(w_C, "rmsnorm w_C", dtype, {C});
  dispatch_activation(dtype, [&]<class A>() {
    const Forward<A> f{rows<A>(y_NC),
                       rows<A>(sum_NC),
                       rstd_N.data<Acc<A>>(),
                       rows<A>(x_NC),
                       rows<A>(delta_NC),
                       w_C.data<A>(),
                       N,
                       C,
                       eps,
                       wide_rows({y_NC, sum_NC, x_NC, delta_NC, w_C})};
    dispatch_group<A>(C, [&]<int kGroup>() {
      launch(stream(), {ceil_div(N, kBlock<kGroup> / kGroup)}, kBlock<kGroup>, 0, forward_kernel<A, kGroup>, f);
    });
  });
}

void CudaOps::rmsnorm_backward(Tensor dx_NC, Tensor dw_C, ConstTensor dy_NC, ConstTensor x_NC, ConstTensor rstd_N,
                               ConstTensor w_C, ConstTensor dresidual_NC) {
  const int64_t N = x_NC.size(0), C = x_NC.size(1);
  const DType dtype = x_NC.dtype();
  if (N == 0) return;
  expect(dx_NC, "rmsnorm dx_NC", dtype, {N, C});
  expect(dw_C, "rmsnorm dw_C", accumulate_type(dtype), {C});
  expect(dy_NC, "rmsnorm dy_NC", dtype, {N, C});
  expect(x_NC, "rmsnorm x_NC", dtype, {N, C});
  expect(rstd_N, "rmsnorm rstd_N", accumulate_type(dtype), {N});
  expect(w_C, "rmsnorm w_C", dtype, {C});
  expect_optional(dresidual_NC, "rmsnorm dresidual_NC", dtype, {N, C});
  dispatch_activation(dtype, [&]<class A>() {
    const int64_t rows_per_line = ceil_div(N, partial_lines(N, 8)), lines = ceil_div(N, rows_per_line);
    Acc<A>* partial = workspace_.take<Acc<A>>(lines * C);
    const Backward<A> f{rows<A>(dx_NC),
                        partial,
                        rows<A>(dy_NC),
                        rows<A>(x_NC),
                        rstd_N.data<Acc<A>>(),
                        w_C.data<A>(),
                        rows<A>(dresidual_NC),
                        N,
                        C,
                        rows_per_line,
                        wide_rows({dx_NC, dy_NC, x_NC, w_C, dresidual_NC})};
    dispatch_group<A>(
        C, [&]<int kGroup>() { launch(stream(), {lines}, kBlock<kGroup>, 0, backward_kernel<A, kGroup>, f); });
    add_lines<Acc<A>>(stream(), {dw_C.data<Acc<A>>(), C, C, 1}, partial, lines, C);
  });
}

}  // namespace tmamba::cuda
