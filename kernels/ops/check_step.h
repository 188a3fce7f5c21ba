// The decision of Ops::check_step, shared by all backends.
#pragma once

#include <cmath>

#include "kernels/ops/step_scalars.h"

namespace tmamba {

// Sets applied and grad_scale: a step is applied where its loss per token and its gradient norm are finite and within
// their limits; gradients longer than limits.clip are scaled to it.
constexpr void decide_step(StepScalars& step, const StepSums& sums, const StepLimits& limits) {
  using std::sqrt;
  const double loss = sums.loss_sum / sums.token_count, norm = sqrt(sums.grad_squares);
  // A NaN is within no limit; infinity - infinity is not 0.
  const bool within = loss <= limits.max_loss && norm <= limits.max_grad_norm;
  const bool finite = loss - loss == 0 && norm - norm == 0;
  step.applied = within && finite ? 1 : 0;
  step.grad_scale = limits.clip > 0 && norm > limits.clip ? limits.clip / norm : 1.0;
}

}  // namespace tmamba
