#include <cmath>

#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/partial_sums.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec_math.h"

namespace tmamba {

namespace {

// out = g rstd w with g = y SiLU(z), or g = y without a gate; returns rstd.
template <bool gated, class A>
A forward_row(A* out, const A* y, const A* z, const A* w, int64_t D, double eps) {
  A squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < D; ++i) {
    A g = y[i];
    if constexpr (gated) g *= z[i] * sigmoid(z[i]);
    out[i] = g;
    squares += g * g;
  }
  const A rstd = A(1) / std::sqrt(squares / static_cast<A>(D) + static_cast<A>(eps));
#pragma omp simd
  for (int64_t i = 0; i < D; ++i) out[i] *= rstd * w[i];
  return rstd;
}

// silu, silu_slope: D numbers of scratch each. dy may be dout.
template <bool gated, class A>
void backward_row(A* dy, A* dz, A* dw, const A* dout, const A* y, const A* z, A rstd, const A* w, int64_t D, A* silu,
                  A* silu_slope) {
  A dot = 0;  // sum of w dout g
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < D; ++i) {
    if constexpr (gated) {
      const A s = sigmoid(z[i]);
      silu[i] = z[i] * s;
      silu_slope[i] = s * (A(1) + z[i] * (A(1) - s));
    } else {
      silu[i] = A(1);
    }
    dot += w[i] * dout[i] * (y[i] * silu[i]);
  }
  const A along = dot * rstd * rstd * rstd / static_cast<A>(D);
#pragma omp simd
  for (int64_t i = 0; i < D; ++i) {
    const A g = y[i] * silu[i];
    dw[i] += dout[i] * g * rstd;
    const A dg = rstd * w[i] * dout[i] - g * along;
    dy[i] = dg * silu[i];
    if constexpr (gated) dz[i] = dg * y[i] * silu_slope[i];
  }
}

}  // namespace

void CpuOps::gated_norm_forward(const GatedNormForward& args) {
  const int64_t B = args.y_BTHD.size(0), T = args.y_BTHD.size(1), H = args.y_BTHD.size(2), D = args.y_BTHD.size(3);
  if (B * T * H * D == 0) return;
  check_args(Device::cpu, args);
  const bool gated = !args.z_BTHD.empty();
  dispatch_float(args.y_BTHD.dtype(), [&]<class A>() {
    const auto out = cubes<A>(args.out_BTHD);
    const auto rstd = planes<A>(args.rstd_BTH);
    const auto y = cubes<A>(args.y_BTHD), z = cubes<A>(args.z_BTHD);
    const auto w = rows<A>(args.w_HD);
    parallel_blocks(B * T, rows_per_block(H * D), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t b = n / T, t = n % T;
        for (int64_t h = 0; h < H; ++h) {
          A* out_row = out.at(b, t, h);
          rstd.at(b, t)[h] = gated ? forward_row<true, A>(out_row, y.at(b, t, h), z.at(b, t, h), w[h], D, args.eps)
                                   : forward_row<false, A>(out_row, y.at(b, t, h), nullptr, w[h], D, args.eps);
        }
      }
    });
  });
}

void CpuOps::gated_norm_backward(const GatedNormBackward& args) {
  const int64_t B = args.y_BTHD.size(0), T = args.y_BTHD.size(1), H = args.y_BTHD.size(2), D = args.y_BTHD.size(3);
  if (B * T * H * D == 0) return;
  check_args(Device::cpu, args);
  const bool gated = !args.z_BTHD.empty();
  dispatch_float(args.y_BTHD.dtype(), [&]<class A>() {
    const auto dy = cubes<A>(args.dy_BTHD), dz = cubes<A>(args.dz_BTHD);
    const auto dout = cubes<A>(args.dout_BTHD), y = cubes<A>(args.y_BTHD), z = cubes<A>(args.z_BTHD);
    const auto rstd = planes<A>(args.rstd_BTH);
    const auto w = rows<A>(args.w_HD);
    const RowGroups groups(B * T);
    ScratchFrame frame;
    A* partial = frame.take_zeros<A>(groups.count * H * D);
    parallel_tasks(groups.count, [&](int64_t g) {
      ScratchFrame task_frame;
      A* silu = task_frame.take<A>(D);
      A* silu_slope = task_frame.take<A>(D);
      for (int64_t n = groups.begin(g); n < groups.end(g); ++n) {
        const int64_t b = n / T, t = n % T;
        for (int64_t h = 0; h < H; ++h) {
          A* dw_row = partial + (g * H + h) * D;
          if (gated) {
            backward_row<true, A>(dy.at(b, t, h), dz.at(b, t, h), dw_row, dout.at(b, t, h), y.at(b, t, h),
                                  z.at(b, t, h), rstd.at(b, t)[h], w[h], D, silu, silu_slope);
          } else {
            backward_row<false, A>(dy.at(b, t, h), nullptr, dw_row, dout.at(b, t, h), y.at(b, t, h), nullptr,
                                   rstd.at(b, t)[h], w[h], D, silu, silu_slope);
          }
        }
      }
    });
    A* sum = frame.take_zeros<A>(H * D);
    add_partial_rows(sum, partial, groups.count, H * D);
    const auto dw = rows<A>(args.dw_HD);
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t i = 0; i < D; ++i) dw[h][i] += sum[h * D + i];
    }
  });
}

}  // namespace tmamba
