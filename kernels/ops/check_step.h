// What Ops::judge_step decides, for all backends.
#pragma once

#include "kernels/ops/ops.h"

namespace tmamba {

struct StepVerdict {
  bool taken;
  double grad_scale;
};

// loss: nats per token; norm: of all gradients together.
constexpr StepVerdict judge(double loss, double norm, const double* limits_L) {
  // A NaN is within no limit; of an infinity, infinity less itself is none.
  const bool within = loss <= limits_L[kMostLoss] && norm <= limits_L[kMostGradNorm];
  const bool finite = loss - loss == 0 && norm - norm == 0;
  const double clip = limits_L[kClip];
  return {within && finite, clip > 0 && norm > clip ? clip / norm : 1.0};
}

}  // namespace tmamba
