// Scans of whole states over segments, and states carried over tokens that add nothing.
#include <algorithm>
#include <cmath>

#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"

namespace tmamba {

void CpuOps::ssd_decay(const SsdDecay& args) {
  const int64_t B = args.state_BHKD.size(0), H = args.state_BHKD.size(1), K = args.state_BHKD.size(2),
                D = args.state_BHKD.size(3);
  check_args(Device::cpu, args);
  dispatch_float(args.state_BHKD.dtype(), [&]<class A>() {
    parallel_tasks(B * H, [&](int64_t task) {
      const int64_t b = task / H, h = task % H;
      const A* log_a = args.log_a_BTH.select(0, b).data<A>() + h;
      A sum = 0;
      for (int64_t t = 0; t < args.log_a_BTH.size(1); ++t) sum += log_a[t * args.log_a_BTH.stride(1)];
      const A factor = std::exp(sum);
      const Tensor state_KD = args.state_BHKD.select(0, b).select(0, h);
      for (int64_t k = 0; k < K; ++k) {
        A* row = state_KD.select(0, k).data<A>();
        for (int64_t d = 0; d < D; ++d) row[d] *= factor;
      }
    });
  });
}

void CpuOps::segment_scan(const SegmentScan& args) {
  const int64_t K = args.out_KBHE.size(0), B = args.out_KBHE.size(1), H = args.out_KBHE.size(2),
                E = args.out_KBHE.size(3);
  check_args(Device::cpu, args);
  dispatch_float(args.out_KBHE.dtype(), [&]<class A>() {
    auto row = [&](auto view_KBHE, int64_t k, int64_t b, int64_t h) {
      return view_KBHE.select(0, k).select(0, b).select(0, h).template data<A>();
    };
    parallel_tasks(B * H, [&](int64_t task) {
      const int64_t b = task / H, h = task % H;
      for (int64_t step = 0; step < K; ++step) {
        const int64_t k = args.reverse ? K - 1 - step : step, before = args.reverse ? k + 1 : k - 1;
        A* out = row(args.out_KBHE, k, b, h);
        if (step == 0) {
          std::fill_n(out, E, A(0));
          continue;
        }
        const A factor =
            std::exp(args.decay_KBH.select(0, before).select(0, b).data<A>()[h * args.decay_KBH.stride(2)]);
        const A *carried = row(ConstTensor(args.out_KBHE), before, b, h), *in = row(args.in_KBHE, before, b, h);
        for (int64_t e = 0; e < E; ++e) out[e] = factor * carried[e] + in[e];
      }
    });
  });
}

}  // namespace tmamba
