// RMSNorm. Forward: a group of kGroup threads (a warp, or a block for long rows) holds a row in registers. Backward: a
// block processes one or more rows at a time, each thread the same columns of all of them.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/partial_sums.cuh"
#include "kernels/cuda/common/pipeline.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kNarrow = kWarp, kBroad = 512;

template <int kGroup>
constexpr int kBlock = kGroup == kNarrow ? 256 : kGroup;
template <int kGroup>
constexpr int kVectors = kGroup == kNarrow ? 8 : 4;  // 16-byte vectors of a row per thread

// The sum over the group that holds a row.
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
  bool aligned16;
};

template <class A, int kGroup, bool kAdds>
__global__ void __launch_bounds__(kBlock<kGroup>, kGroup == kNarrow && sizeof(A) == 2 ? 3 : 1)
    forward_kernel(const __grid_constant__ Forward<A> f) {
  __shared__ Acc<A> scratch[kBroad / kWarp];
  constexpr int V = kVec<A>;
  const int lane = threadIdx.x % kGroup;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (kBlock<kGroup> / kGroup) + threadIdx.x / kGroup;
  if (n >= f.N) return;
  Raw<A> x[kVectors<kGroup>];
#pragma unroll
  for (int j = 0; j < kVectors<kGroup>; ++j) {
    const int64_t c = (lane + j * kGroup) * V, left = f.C - c;
    x[j] = load(f.x[n] + c, left, f.aligned16);
    if (kAdds && left > 0) {
      const Raw<A> delta = load(f.delta[n] + c, left, f.aligned16);
      Acc<A> both[V];
#pragma unroll
      for (int e = 0; e < V; ++e) both[e] = x[j][e] + delta[e];
      x[j] = Raw<A>::rounded(both);
      store(f.sum[n] + c, x[j], left, f.aligned16);
    }
  }
  Acc<A> squares = 0;
#pragma unroll
  for (int j = 0; j < kVectors<kGroup>; ++j) {
#pragma unroll
    for (int e = 0; e < V; ++e) squares += x[j][e] * x[j][e];
  }
  squares = group_sum<kGroup>(squares, scratch);
  const Acc<A> rstd = 1 / sqrt(squares / static_cast<Acc<A>>(f.C) + static_cast<Acc<A>>(f.eps));
  if (lane == 0) f.rstd[n] = rstd;
#pragma unroll
  for (int j = 0; j < kVectors<kGroup>; ++j) {
    const int64_t c = (lane + j * kGroup) * V, left = f.C - c;
    if (left <= 0) continue;
    const Raw<A> w = load(f.w + c, left, f.aligned16);
    Acc<A> y[V];
#pragma unroll
    for (int e = 0; e < V; ++e) y[e] = x[j][e] * rstd * w[e];
    store(f.y[n] + c, Raw<A>::rounded(y), left, f.aligned16);
  }
}

template <class A>
struct Backward {
  Rows<A> dx;
  Acc<A>* dw_partial;  // [partial rows, C]
  Rows<const A> dy, x;
  const Acc<A>* rstd;
  const A* w;
  Rows<const A> dresidual;
  int64_t N, C;
  bool aligned16;
};

constexpr int kFewThreads = 192, kMostThreads = 512;
// If a thread has one vector of a row, a block processes kRows rows per barrier, with later ones in flight.
template <int kSteps>
constexpr int kRows = kSteps == 1 ? 2 : 1;
template <int kSteps>
constexpr int kStages = kSteps == 1 ? 3 : 1;
template <class A, int kSteps, int kThreads, bool kResidual>
using BackwardPipeline = ThreadPipeline<A, kThreads, kRows<kSteps>*(kResidual ? 3 : 2) * kSteps, kStages<kSteps>>;

// One block per row of partial sums. Rows are interleaved among blocks, so that all blocks together traverse memory in
// order; each thread accumulates dw of its columns in registers.
template <class A, int kSteps, int kThreads, bool kResidual>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 2 && kThreads < kMostThreads ? 3 : 1)
    backward_kernel(const __grid_constant__ Backward<A> f) {
  constexpr int V = kVec<A>, R = kRows<kSteps>, kTensors = kResidual ? 3 : 2;
  extern __shared__ uint4 shared[];
  __shared__ Acc<A> dots[2][R][kThreads / kWarp];  // double-buffered: other warps may still read the previous rows'
  launch_dependent_grids();
  using Copies = BackwardPipeline<A, kSteps, kThreads, kResidual>;
  Copies pipeline(shared);
  const int threads = static_cast<int>(blockDim.x), warps = threads / kWarp;
  const int64_t begin = blockIdx.x, step = gridDim.x;
  const auto column = [&](int j) { return static_cast<int64_t>(threadIdx.x + j * threads) * V; };
  const auto vector = [](int r, int j, int tensor) { return (r * kSteps + j) * kTensors + tensor; };
  const int64_t first = column(0);
  const bool whole = f.aligned16 && column(kSteps - 1) + V <= f.C;
  const A *next_x = f.x[begin] + first, *next_dy = f.dy[begin] + first;
  const A* next_residual = kResidual ? f.dresidual[begin] + first : nullptr;
  A* dx_row = f.dx[begin] + first;
  // Starts to load row n and the block's next R - 1 rows; rows beyond the last become zeros.
  const auto start = [&](int stage, int64_t n) {
#pragma unroll
    for (int r = 0; r < R; ++r, n += step) {
      const bool there = n < f.N;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        const int offset = j * threads * V;
        if (whole) {
          pipeline.load_full_async(stage, vector(r, j, 0), next_x + offset, there);
          pipeline.load_full_async(stage, vector(r, j, 1), next_dy + offset, there);
          if (kResidual) pipeline.load_full_async(stage, vector(r, j, 2), next_residual + offset, there);
        } else {
          const int64_t left = there ? f.C - column(j) : 0;
          pipeline.load_async(stage, vector(r, j, 0), next_x + offset, left, f.aligned16);
          pipeline.load_async(stage, vector(r, j, 1), next_dy + offset, left, f.aligned16);
          if (kResidual) pipeline.load_async(stage, vector(r, j, 2), next_residual + offset, left, f.aligned16);
        }
      }
      next_x += step * f.x.stride, next_dy += step * f.dy.stride;
      if (kResidual) next_residual += step * f.dresidual.stride;
    }
    Copies::commit();
  };
#pragma unroll
  for (int stage = 0; stage < kStages<kSteps>; ++stage) start(stage, begin + stage * R * step);
  Acc<A> dw[kSteps][V] = {};
  Raw<A> w[kSteps];
#pragma unroll
  for (int j = 0; j < kSteps; ++j) w[j] = load(f.w + column(j), f.C - column(j), f.aligned16);
  const Acc<A> share = Acc<A>(1) / static_cast<Acc<A>>(f.C);
  const auto rstd_of = [&](int64_t n) { return n < f.N ? f.rstd[n] : Acc<A>(0); };
  Acc<A> next_rstd[R];
#pragma unroll
  for (int r = 0; r < R; ++r) next_rstd[r] = rstd_of(begin + r * step);
  int stage = 0, half = 0;
  for (int64_t n = begin; n < f.N; n += R * step, half ^= 1) {
    Acc<A> rstd[R], dot[R] = {}, w_dy[R][kSteps][V];
    Raw<A> x[R][kSteps];
    Copies::wait();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      rstd[r] = next_rstd[r];
      next_rstd[r] = rstd_of(n + (R + r) * step);
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        x[r][j] = pipeline.at(stage, vector(r, j, 0));
        const Raw<A> dy = pipeline.at(stage, vector(r, j, 1));
#pragma unroll
        for (int e = 0; e < V; ++e) {
          w_dy[r][j][e] = w[j][e] * dy[e];
          dot[r] += w_dy[r][j][e] * x[r][j][e];
          dw[j][e] += dy[e] * rstd[r] * x[r][j][e];
        }
      }
      dot[r] = warp_sum(dot[r]);
      if (threadIdx.x % kWarp == 0) dots[half][r][threadIdx.x / kWarp] = dot[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (n + r * step >= f.N) break;
      Acc<A> sum = 0;
      for (int i = 0; i < warps; ++i) sum += dots[half][r][i];
      const Acc<A> along = sum * rstd[r] * rstd[r] * rstd[r] * share;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        const int64_t left = f.C - column(j);
        if (left <= 0) continue;
        if constexpr (kSteps > 1) {  // too many vectors to keep in registers
          x[r][j] = pipeline.at(stage, vector(r, j, 0));
          const Raw<A> dy = pipeline.at(stage, vector(r, j, 1));
#pragma unroll
          for (int e = 0; e < V; ++e) w_dy[r][j][e] = w[j][e] * dy[e];
        }
        Acc<A> dx[V];
#pragma unroll
        for (int e = 0; e < V; ++e) dx[e] = rstd[r] * w_dy[r][j][e] - x[r][j][e] * along;
        if constexpr (kResidual) {
          const Raw<A> more = pipeline.at(stage, vector(r, j, 2));
#pragma unroll
          for (int e = 0; e < V; ++e) dx[e] += more[e];
        }
        store(dx_row + j * threads * V, Raw<A>::rounded(dx), left, f.aligned16);
      }
      dx_row += step * f.dx.stride;
    }
    start(stage, n + kStages<kSteps> * R * step);
    stage = stage + 1 == kStages<kSteps> ? 0 : stage + 1;
  }
  Acc<A>* partial_row = f.dw_partial + blockIdx.x * f.C;
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      if (column(j) + e < f.C) partial_row[column(j) + e] = dw[j][e];
    }
  }
}

// Calls f.template operator()<kGroup>() with the number of threads for a row of C channels.
template <class A, class F>
void dispatch_group(int64_t C, const F& f) {
  constexpr int64_t kMost = int64_t{kBroad} * kVectors<kBroad> * kVec<A>;
  TM_CHECK(C <= kMost, "rmsnorm: rows of ", C, " channels, at most ", kMost, " are supported on the GPU");
  if (C <= int64_t{kNarrow} * kVectors<kNarrow> * kVec<A>) return f.template operator()<kNarrow>();
  f.template operator()<kBroad>();
}

// Calls f.template operator()<kSteps, kThreads>(): vectors per thread and the most threads of a backward block.
template <class A, class F>
void dispatch_steps(int64_t C, const F& f) {
  if (C <= int64_t{kFewThreads} * kVec<A>) return f.template operator()<1, kFewThreads>();
  if (C <= int64_t{kMostThreads} / 2 * kVec<A>) return f.template operator()<1, kMostThreads / 2>();
  if (C <= int64_t{kMostThreads} * kVec<A>) return f.template operator()<1, kMostThreads>();
  TM_CHECK(C <= int64_t{kMostThreads} * 4 * kVec<A>, "rmsnorm: rows of ", C, " channels, at most ",
           kMostThreads * 4 * kVec<A>, " are supported on the GPU");
  f.template operator()<4, kMostThreads>();
}

}  // namespace

void CudaOps::rmsnorm_forward(const RmsnormForward& args) {
  const int64_t N = args.x_NC.size(0), C = args.x_NC.size(1);
  const DType dtype = args.x_NC.dtype();
  if (N == 0) return;
  check_args(Device::cuda, args);
  dispatch_activation(dtype, [&]<class A>() {
    const Forward<A> f{rows<A>(args.y_NC),
                       rows<A>(args.sum_NC),
                       args.rstd_N.data<Acc<A>>(),
                       rows<A>(args.x_NC),
                       rows<A>(args.delta_NC),
                       args.w_C.data<A>(),
                       N,
                       C,
                       args.eps,
                       rows_aligned16({args.y_NC, args.sum_NC, args.x_NC, args.delta_NC, args.w_C})};
    dispatch_group<A>(C, [&]<int kGroup>() {
      const auto kernel = args.delta_NC.empty() ? forward_kernel<A, kGroup, false> : forward_kernel<A, kGroup, true>;
      launch(stream(), {ceil_div(N, kBlock<kGroup> / kGroup)}, kBlock<kGroup>, 0, kernel, f);
    });
  });
}

void CudaOps::rmsnorm_backward(const RmsnormBackward& args) {
  const int64_t N = args.x_NC.size(0), C = args.x_NC.size(1);
  const DType dtype = args.x_NC.dtype();
  if (N == 0) return;
  check_args(Device::cuda, args);
  dispatch_activation(dtype, [&]<class A>() {
    // One partial row per block: three or two blocks per SM of an H200.
    const int64_t partial_rows = partial_row_count(N, 8, args.dresidual_NC.empty() ? 396 : 264);
    Acc<A>* partial = workspace_.take<Acc<A>>(partial_rows * C);
    const Backward<A> f{rows<A>(args.dx_NC),
                        partial,
                        rows<A>(args.dy_NC),
                        rows<A>(args.x_NC),
                        args.rstd_N.data<Acc<A>>(),
                        args.w_C.data<A>(),
                        rows<A>(args.dresidual_NC),
                        N,
                        C,
                        rows_aligned16({args.dx_NC, args.dy_NC, args.x_NC, args.w_C, args.dresidual_NC})};
    dispatch_steps<A>(C, [&]<int kSteps, int kThreads>() {
      const int64_t threads = round_up(ceil_div(C, kSteps * kVec<A>), kWarp);
      const auto run = [&]<bool kResidual>() {
        launch(stream(), {partial_rows}, static_cast<unsigned>(threads),
               BackwardPipeline<A, kSteps, kThreads, kResidual>::kBytes,
               backward_kernel<A, kSteps, kThreads, kResidual>, f);
      };
      if (args.dresidual_NC.empty()) {
        run.template operator()<false>();
      } else {
        run.template operator()<true>();
      }
    });
    add_partial_rows(stream(), SumTarget<Acc<A>>{args.dw_C.data<Acc<A>>(), C, C, 1}, partial, partial_rows, C);
  });
}

}  // namespace tmamba::cuda
