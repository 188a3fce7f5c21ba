#include <cmath>

#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/partial_sums.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec_math.h"

namespace tmamba {

namespace {
// exp(A_log), by the library: H numbers.
template <class A>
A* rates(ScratchFrame& frame, const A* A_log, int64_t H) {
  A* rate = frame.take<A>(H);
  for (int64_t h = 0; h < H; ++h) rate[h] = std::exp(A_log[h]);
  return rate;
}
}  // namespace

void CpuOps::dt_forward(const DtForward& args) {
  const int64_t N = args.raw_NH.size(0), H = args.raw_NH.size(1);
  check_args(Device::cpu, args);
  if (N == 0) return;
  dispatch_float(args.raw_NH.dtype(), [&]<class A>() {
    const auto dt = rows<A>(args.dt_NH), log_a = rows<A>(args.log_a_NH);
    const auto raw = rows<A>(args.raw_NH);
    const A* bias = args.bias_H.data<A>();
    ScratchFrame frame;
    const A* rate = rates(frame, args.A_log_H.data<A>(), H);
    parallel_blocks(N, rows_per_block(16 * H), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t h = 0; h < H; ++h) {
          const A step = softplus(raw[n][h] + bias[h]);
          dt[n][h] = step;
          log_a[n][h] = -step * rate[h];
        }
      }
    });
  });
}

void CpuOps::dt_backward(const DtBackward& args) {
  const int64_t N = args.raw_NH.size(0), H = args.raw_NH.size(1);
  check_args(Device::cpu, args);
  if (N == 0) return;
  dispatch_float(args.raw_NH.dtype(), [&]<class A>() {
    const auto draw = rows<A>(args.draw_NH);
    const auto ddt = rows<A>(args.ddt_NH), dlog_a = rows<A>(args.dlog_a_NH), raw = rows<A>(args.raw_NH);
    const A* bias = args.bias_H.data<A>();
    const RowGroups groups(N);
    ScratchFrame frame;
    const A* rate = rates(frame, args.A_log_H.data<A>(), H);
    A* dbias = frame.take_zeros<A>(groups.count * H);
    A* dA_log = frame.take_zeros<A>(groups.count * H);
    parallel_tasks(groups.count, [&](int64_t g) {
      A* dbias_line = dbias + g * H;
      A* dA_log_line = dA_log + g * H;
      for (int64_t n = groups.begin(g); n < groups.end(g); ++n) {
        for (int64_t h = 0; h < H; ++h) {
          const A x = raw[n][h] + bias[h];
          // d softplus = sigmoid; log_a = -softplus(x) rate, and d rate / d A_log = rate.
          const A dx = (ddt[n][h] - dlog_a[n][h] * rate[h]) * sigmoid(x);
          draw[n][h] = dx;
          dbias_line[h] += dx;
          dA_log_line[h] -= dlog_a[n][h] * softplus(x) * rate[h];
        }
      }
    });
    add_partial_rows(args.dbias_H.data<A>(), dbias, groups.count, H);
    add_partial_rows(args.dA_log_H.data<A>(), dA_log, groups.count, H);
  });
}

}  // namespace tmamba
