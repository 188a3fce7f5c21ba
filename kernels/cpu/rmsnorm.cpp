#include <cmath>

#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/partial_sums.h"
#include "kernels/cpu/scratch.h"

namespace tmamba {

namespace {

// sum = x + delta (where there is a delta); y = sum * rstd * w; returns rstd.
template <class A>
A norm_row(A* y, A* sum, const A* x, const A* delta, const A* w, int64_t C, double eps) {
  if (delta != nullptr) {
    for (int64_t c = 0; c < C; ++c) sum[c] = x[c] + delta[c];
    x = sum;
  }
  A squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < C; ++c) squares += x[c] * x[c];
  const A rstd = A(1) / std::sqrt(squares / static_cast<A>(C) + static_cast<A>(eps));
  for (int64_t c = 0; c < C; ++c) y[c] = x[c] * rstd * w[c];
  return rstd;
}

// dx = dresidual + rstd (w dy - x rstd mean(w dy x rstd)); dw += dy x rstd
template <class A>
void norm_row_backward(A* dx, A* dw, const A* dy, const A* x, A rstd, const A* w, const A* dresidual, int64_t C) {
  A dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t c = 0; c < C; ++c) dot += w[c] * dy[c] * x[c];
  const A along = dot * rstd * rstd * rstd / static_cast<A>(C);
  for (int64_t c = 0; c < C; ++c) dw[c] += dy[c] * x[c] * rstd;
  if (dresidual != nullptr) {
    for (int64_t c = 0; c < C; ++c) dx[c] = dresidual[c] + (rstd * w[c] * dy[c] - x[c] * along);
  } else {
    for (int64_t c = 0; c < C; ++c) dx[c] = rstd * w[c] * dy[c] - x[c] * along;
  }
}

}  // namespace

void CpuOps::rmsnorm_forward(const RmsnormForward& args) {
  const int64_t N = args.x_NC.size(0), C = args.x_NC.size(1);
  if (N == 0) return;
  check_args(Device::cpu, args);
  dispatch_float(args.x_NC.dtype(), [&]<class A>() {
    const auto y = rows<A>(args.y_NC), sum = rows<A>(args.sum_NC);
    const auto x = rows<A>(args.x_NC), delta = rows<A>(args.delta_NC);
    const A* w = args.w_C.data<A>();
    A* rstd = args.rstd_N.data<A>();
    parallel_blocks(N, rows_per_block(C), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const bool adds = delta.data != nullptr;
        rstd[n] = norm_row(y[n], adds ? sum[n] : nullptr, x[n], adds ? delta[n] : nullptr, w, C, args.eps);
      }
    });
  });
}

void CpuOps::rmsnorm_backward(const RmsnormBackward& args) {
  const int64_t N = args.x_NC.size(0), C = args.x_NC.size(1);
  if (N == 0) return;
  check_args(Device::cpu, args);
  dispatch_float(args.x_NC.dtype(), [&]<class A>() {
    const auto dx = rows<A>(args.dx_NC);
    const auto dy = rows<A>(args.dy_NC), x = rows<A>(args.x_NC), dresidual = rows<A>(args.dresidual_NC);
    const A* w = args.w_C.data<A>();
    const A* rstd = args.rstd_N.data<A>();
    const RowGroups groups(N);
    ScratchFrame frame;
    A* partial = frame.take_zeros<A>(groups.count * C);
    parallel_tasks(groups.count, [&](int64_t g) {
      for (int64_t n = groups.begin(g); n < groups.end(g); ++n) {
        norm_row_backward(dx[n], partial + g * C, dy[n], x[n], rstd[n], w,
                          dresidual.data != nullptr ? dresidual[n] : nullptr, C);
      }
    });
    add_partial_rows(args.dw_C.data<A>(), partial, groups.count, C);
  });
}

}  // namespace tmamba
