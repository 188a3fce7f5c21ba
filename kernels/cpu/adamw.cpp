#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/ops/adamw_rule.h"
#include "kernels/ops/check_step.h"

namespace tmamba {

namespace {

template <class T>
void update(T* master, T* m, T* v, const T* grad, int64_t count, T decay, const AdamwCoefficients<T>& k) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) adamw_update(master[i], m[i], v[i], grad[i], decay, k);
}

}  // namespace

void CpuOps::check_step(const CheckStep& args) {
  check_args(Device::cpu, args);
  decide_step(*scalars_in<StepScalars>(args.step_S), *scalars_in<StepSums>(args.sums_S),
              *scalars_in<StepLimits>(args.limits_S));
}

void CpuOps::adamw(const Adamw& args) {
  check_args(Device::cpu, args);
  const StepScalars& step = *scalars_in<StepScalars>(args.step_S);
  if (step.applied == 0) return;
  for (const AdamwTensor& x : args.tensors) {
    const int64_t count = x.master.numel();
    if (count == 0) continue;
    dispatch_float(x.master.dtype(), [&]<class T>() {
      T* master = x.master.data<T>();
      T* m = x.m.data<T>();
      T* v = x.v.data<T>();
      const T* grad = x.grad.data<T>();
      const AdamwCoefficients<T> k(args.rule, step);
      const T decay = x.decay ? k.decay : T(0);
      parallel_blocks(count, rows_per_block(1), [&](int64_t begin, int64_t end) {
        update(master + begin, m + begin, v + begin, grad + begin, end - begin, decay, k);
      });
    });
    if (x.param.raw() != x.master.raw()) copy({x.param.view({count}), ConstTensor(x.master).view({count})});
  }
}

}  // namespace tmamba
