#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vec_math.h"

namespace tmamba {

void CpuOps::swiglu_forward(const SwigluForward& args) {
  const int64_t N = args.h_NF.size(0), F = args.h_NF.size(1);
  check_args(Device::cpu, args);
  dispatch_float(args.h_NF.dtype(), [&]<class A>() {
    const auto h = rows<A>(args.h_NF);
    const auto gate_up = rows<A>(args.gate_up_N2F);
    parallel_blocks(N, rows_per_block(F), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const A* gate = gate_up[n];
        const A* up = gate + F;
        A* out = h[n];
#pragma omp simd
        for (int64_t f = 0; f < F; ++f) out[f] = gate[f] * sigmoid(gate[f]) * up[f];
      }
    });
  });
}

void CpuOps::swiglu_backward(const SwigluBackward& args) {
  const int64_t N = args.dh_NF.size(0), F = args.dh_NF.size(1);
  check_args(Device::cpu, args);
  dispatch_float(args.dh_NF.dtype(), [&]<class A>() {
    const auto dgate_up = rows<A>(args.dgate_up_N2F);
    const auto dh = rows<A>(args.dh_NF), gate_up = rows<A>(args.gate_up_N2F);
    parallel_blocks(N, rows_per_block(F), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const A* gate = gate_up[n];
        const A* up = gate + F;
        const A* d = dh[n];
        A* dgate = dgate_up[n];
        A* dup = dgate + F;
#pragma omp simd
        for (int64_t f = 0; f < F; ++f) {
          const A s = sigmoid(gate[f]);
          dgate[f] = d[f] * up[f] * s * (A(1) + gate[f] * (A(1) - s));
          dup[f] = d[f] * gate[f] * s;
        }
      }
    });
  });
}

}  // namespace tmamba
