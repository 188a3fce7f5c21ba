#include <cmath>

#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/judge.h"
#include "kernels/op_checks.h"

namespace tmamba {

namespace {

template <class T>
struct Coefficients {
  T grad_scale, beta1, beta2, step1, inverse_correction2, eps, decay;
  Coefficients(const AdamwRule& rule, const double* step_S, bool decays)
      : grad_scale(static_cast<T>(step_S[kGradScale])),
        beta1(static_cast<T>(rule.beta1)),
        beta2(static_cast<T>(rule.beta2)),
        step1(static_cast<T>(step_S[kLr] / step_S[kBiasCorrection1])),
        inverse_correction2(static_cast<T>(1.0 / step_S[kBiasCorrection2])),
        eps(static_cast<T>(rule.eps)),
        decay(static_cast<T>(decays ? step_S[kLr] * rule.weight_decay : 0.0)) {}
};

// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
// master -= lr (weight_decay master + (m / c1) / (sqrt(v / c2) + eps))
template <class T>
void update(T* master, T* m, T* v, const T* grad, int64_t count, const Coefficients<T>& k) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T g = grad[i] * k.grad_scale;
    const T m_i = k.beta1 * m[i] + (T(1) - k.beta1) * g;
    const T v_i = k.beta2 * v[i] + (T(1) - k.beta2) * (g * g);
    m[i] = m_i;
    v[i] = v_i;
    master[i] -= k.decay * master[i] + k.step1 * m_i / (std::sqrt(v_i * k.inverse_correction2) + k.eps);
  }
}

}  // namespace

void CpuOps::judge_step(Tensor step_S, ConstTensor sums_S, ConstTensor limits_L) {
  check_judge_step(Device::cpu, step_S, sums_S, limits_L);
  const double* sums = sums_S.data<double>();
  const StepVerdict verdict =
      judge(sums[kLossSum] / sums[kTokenCount], std::sqrt(sums[kSquares]), limits_L.data<double>());
  step_S.data<double>()[kTaken] = verdict.taken ? 1 : 0;
  step_S.data<double>()[kGradScale] = verdict.grad_scale;
}

void CpuOps::adamw(std::span<const AdamwTensor> tensors, const AdamwRule& rule, ConstTensor step_S) {
  check_adamw(Device::cpu, tensors, step_S);
  if (step_S.data<double>()[kTaken] == 0) return;
  for (const AdamwTensor& x : tensors) {
    const int64_t count = x.master.numel();
    if (count == 0) continue;
    dispatch_float(x.master.dtype(), [&]<class T>() {
      T* master = x.master.data<T>();
      T* m = x.m.data<T>();
      T* v = x.v.data<T>();
      const T* grad = x.grad.data<T>();
      const Coefficients<T> k(rule, step_S.data<double>(), x.decay);
      parallel_blocks(count, rows_per_block(1), [&](int64_t begin, int64_t end) {
        update(master + begin, m + begin, v + begin, grad + begin, end - begin, k);
      });
    });
    if (x.param.raw() != x.master.raw()) copy(x.param.view({count}), ConstTensor(x.master).view({count}));
  }
}

}  // namespace tmamba
