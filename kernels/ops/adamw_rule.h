// The update of one parameter by Ops::adamw, for all backends (model/SPEC.md section 7).
#pragma once

#include <cmath>

#include "kernels/ops/ops.h"
#include "kernels/ops/step_scalars.h"

namespace tmamba {

// The scalars of a step, in the type T of the master.
template <class T>
struct AdamwCoefficients {
  T grad_scale, beta1, beta2, step1, inverse_correction2, eps, decay;

  constexpr AdamwCoefficients(const AdamwRule& rule, const StepScalars& step)
      : grad_scale(static_cast<T>(step.grad_scale)),
        beta1(static_cast<T>(rule.beta1)),
        beta2(static_cast<T>(rule.beta2)),
        step1(static_cast<T>(step.lr / step.bias_correction1)),
        inverse_correction2(static_cast<T>(1.0 / step.bias_correction2)),
        eps(static_cast<T>(rule.eps)),
        decay(static_cast<T>(step.lr * rule.weight_decay)) {}
};

// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
// master -= lr (weight_decay master + (m / c1) / (sqrt(v / c2) + eps))
// `decay`: of the coefficients, or 0 for a parameter without.
template <class T>
constexpr void adamw_update(T& master, T& m, T& v, T grad, T decay, const AdamwCoefficients<T>& k) {
  using std::sqrt;
  const T g = grad * k.grad_scale;
  m = k.beta1 * m + (T(1) - k.beta1) * g;
  v = k.beta2 * v + (T(1) - k.beta2) * (g * g);
  master -= decay * master + k.step1 * m / (sqrt(v * k.inverse_correction2) + k.eps);
}

}  // namespace tmamba
