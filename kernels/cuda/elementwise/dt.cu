#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/partial_sums.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kHeads = 16, kRows = 16;  // a block of threads: kHeads heads by kRows rows

template <class T>
__device__ T softplus(T x) {
  return (x > 0 ? x : T(0)) + log1p(exp(-fabs(x)));
}

template <class A>
struct Inputs {
  Rows<const A> raw;
  const A *bias, *A_log;
  int64_t N, H, rows_per_block;
};

template <class A>
__global__ void __launch_bounds__(kHeads* kRows) forward_kernel(Inputs<A> in, Rows<Acc<A>> dt, Rows<Acc<A>> log_a) {
  const int64_t h = static_cast<int64_t>(blockIdx.y) * kHeads + threadIdx.x;
  if (h >= in.H) return;
  const int64_t begin = blockIdx.x * in.rows_per_block;
  const int64_t end = begin + in.rows_per_block < in.N ? begin + in.rows_per_block : in.N;
  const Acc<A> bias = widen(in.bias[h]), rate = exp(widen(in.A_log[h]));
#pragma unroll 4
  for (int64_t n = begin + threadIdx.y; n < end; n += kRows) {
    const Acc<A> step = softplus(widen(in.raw[n][h]) + bias);
    dt[n][h] = step;
    log_a[n][h] = -step * rate;
  }
}

template <class A>
struct Backward {
  Inputs<A> in;
  Rows<A> draw;
  Rows<const Acc<A>> ddt, dlog_a;
  Acc<A>* partial;  // [blocks of rows, 2, H]: dbias, dA_log
};

template <class A>
__global__ void __launch_bounds__(kHeads* kRows) backward_kernel(Backward<A> f) {
  __shared__ Acc<A> scratch[2][kRows][kHeads];
  const int64_t h = static_cast<int64_t>(blockIdx.y) * kHeads + threadIdx.x;
  const int64_t begin = blockIdx.x * f.in.rows_per_block;
  const int64_t end = begin + f.in.rows_per_block < f.in.N ? begin + f.in.rows_per_block : f.in.N;
  Acc<A> dbias = 0, dA_log = 0;
  if (h < f.in.H) {
    const Acc<A> bias = widen(f.in.bias[h]), rate = exp(widen(f.in.A_log[h]));
#pragma unroll 4
    for (int64_t n = begin + threadIdx.y; n < end; n += kRows) {
      const Acc<A> x = widen(f.in.raw[n][h]) + bias, dlog_a = f.dlog_a[n][h];
      // d softplus = sigmoid; log_a = -softplus(x) rate, and d rate / d A_log = rate.
      const Acc<A> dx = (f.ddt[n][h] - dlog_a * rate) / (1 + exp(-x));
      f.draw[n][h] = narrow<A>(dx);
      dbias += dx;
      dA_log -= dlog_a * softplus(x) * rate;
    }
  }
  scratch[0][threadIdx.y][threadIdx.x] = dbias;
  scratch[1][threadIdx.y][threadIdx.x] = dA_log;
  __syncthreads();
  if (threadIdx.y >= 2 || h >= f.in.H) return;
  Acc<A> sum = 0;
#pragma unroll
  for (int row = 0; row < kRows; ++row) sum += scratch[threadIdx.y][row][threadIdx.x];
  f.partial[(static_cast<int64_t>(blockIdx.x) * 2 + threadIdx.y) * f.in.H + h] = sum;
}

template <class A>
Inputs<A> make_inputs(const ConstTensor& raw_NH, const ConstTensor& bias_H, const ConstTensor& A_log_H) {
  const int64_t N = raw_NH.size(0), blocks = partial_row_count(N, 4 * kRows);
  return {rows<A>(raw_NH), bias_H.data<A>(), A_log_H.data<A>(), N, raw_NH.size(1), ceil_div(N, blocks)};
}

template <class A>
Grid grid_of(const Inputs<A>& in) {
  return {ceil_div(in.N, in.rows_per_block), ceil_div(in.H, kHeads)};
}

}  // namespace

void CudaOps::dt_forward(const DtForward& args) {
  const int64_t N = args.raw_NH.size(0), H = args.raw_NH.size(1);
  check_args(Device::cuda, args);
  if (N * H == 0) return;
  dispatch_activation(args.raw_NH.dtype(), [&]<class A>() {
    const Inputs<A> in = make_inputs<A>(args.raw_NH, args.bias_H, args.A_log_H);
    launch(stream(), grid_of(in), dim3(kHeads, kRows), 0, forward_kernel<A>, in, rows<Acc<A>>(args.dt_NH),
           rows<Acc<A>>(args.log_a_NH));
  });
}

void CudaOps::dt_backward(const DtBackward& args) {
  const int64_t N = args.raw_NH.size(0), H = args.raw_NH.size(1);
  check_args(Device::cuda, args);
  if (N * H == 0) return;
  dispatch_activation(args.raw_NH.dtype(), [&]<class A>() {
    const Inputs<A> in = make_inputs<A>(args.raw_NH, args.bias_H, args.A_log_H);
    const Grid grid = grid_of(in);
    Acc<A>* partial = workspace_.take<Acc<A>>(grid.x * 2 * H);
    const Backward<A> f{in, rows<A>(args.draw_NH), rows<Acc<A>>(args.ddt_NH), rows<Acc<A>>(args.dlog_a_NH), partial};
    launch(stream(), grid, dim3(kHeads, kRows), 0, backward_kernel<A>, f);
    add_partial_rows(stream(), SumTarget<Acc<A>>{args.dbias_H.data<Acc<A>>(), H, H, 1}, partial, grid.x, H, 2 * H);
    add_partial_rows(stream(), SumTarget<Acc<A>>{args.dA_log_H.data<Acc<A>>(), H, H, 1}, partial + H, grid.x, H, 2 * H);
  });
}

}  // namespace tmamba::cuda
