// One step of the optimizer.
#pragma once

#include <span>

#include "kernels/ops/op_args.h"
#include "kernels/ops/step_scalars.h"

namespace tmamba {

// Sets applied and grad_scale of a StepScalars from StepSums and StepLimits (step_scalars.h, check_step.h).
struct CheckStep {
  static constexpr const char* kName = "check_step";
  static constexpr Split kSplit = Split::none;
  Tensor step_S;
  ConstTensor sums_S;
  ConstTensor limits_S;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    f(a.step_S, {"step_S", DType::f64, {kScalars<StepScalars>}});
    f(a.sums_S, {"sums_S", DType::f64, {kScalars<StepSums>}});
    f(a.limits_S, {"limits_S", DType::f64, {kScalars<StepLimits>}});
  }
  OpCounts counts() const { return {}; }
};

// The constants of AdamW, the same at every step (model/SPEC.md section 7).
struct AdamwRule {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
};

// One contiguous piece of the parameters. Where the parameter's type is the master's, `param` and `master` are the
// same memory.
struct AdamwTensor {
  Tensor param;        // type A, written: the master rounded
  Tensor master;       // [acc]
  Tensor m;            // [acc]
  Tensor v;            // [acc]
  ConstTensor grad;    // [acc]
  bool decay = false;  // weight decay applies (decoupled: master -= lr * weight_decay * master)
};

// m, v and master updated by g = grad * grad_scale; param = master rounded. Nothing where the step is skipped.
struct Adamw {
  static constexpr const char* kName = "adamw";
  static constexpr Split kSplit = Split::none;
  std::span<const AdamwTensor> tensors;
  AdamwRule rule;
  ConstTensor step_S;  // StepScalars

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    f(a.step_S, {"step_S", DType::f64, {kScalars<StepScalars>}, kUncounted});
    for (const AdamwTensor& x : a.tensors) {
      f(x.param, {"param", x.param.dtype(), x.param});
      f(x.master, {"master", x.master.dtype(), x.master});
      f(x.m, {"m", x.master.dtype(), x.m});
      f(x.v, {"v", x.master.dtype(), x.v});
      f(x.grad, {"grad", x.master.dtype(), x.grad});
    }
  }
  void check_rest() const;
  OpCounts counts() const {
    OpCounts out;
    for (const AdamwTensor& x : tensors) out.elementwise += 12 * elements(x.master);
    return out;
  }
};

#define TMAMBA_OPTIMIZER_OPS(X) X(check_step, CheckStep) X(adamw, Adamw)

}  // namespace tmamba
