// The scalars of one optimizer step: plain structs of float64 that lie on the device, so that a recorded step that is
// issued again reads new values. Ops take them as tensors (scalars_tensor) whose size is that of the struct; a program
// may lay several of them out one after the other and all-reduce a part.
#pragma once

#include <type_traits>

#include "kernels/base/tensor.h"

namespace tmamba {

// Inputs of check_step; each is a sum over all ranks.
struct StepSums {
  double loss_sum = 0, token_count = 0;  // nats, and tokens counted in them
  double grad_squares = 0;               // squares of all gradients
};

struct StepLimits {
  double clip = 0;                         // gradient norm to clip at; 0: never
  double max_loss = 0, max_grad_norm = 0;  // loss per token and gradient norm above which a step is skipped
};

struct StepScalars {
  double lr = 0;
  double bias_correction1 = 0, bias_correction2 = 0;  // 1 - beta_i^step
  double grad_scale = 1;                              // multiplies every gradient
  double applied = 1;                                 // 0: the step is skipped, adamw changes nothing
};

// How many float64 a struct of scalars holds.
template <class Scalars>
inline constexpr int64_t kScalars = static_cast<int64_t>(sizeof(Scalars) / sizeof(double));

template <class Scalars>
concept StructOfDoubles = std::is_standard_layout_v<Scalars> && std::is_trivially_copyable_v<Scalars> &&
                                  sizeof(Scalars) %
                                  sizeof(double) ==
                              0 &&
                          alignof(Scalars) == alignof(double);

// The scalars on the host as a tensor [kScalars<Scalars>].
template <StructOfDoubles Scalars>
Tensor scalars_tensor(Scalars& scalars) {
  return Tensor(&scalars, {kScalars<Scalars>}, DType::f64);
}

// The reverse: what a tensor [kScalars<Scalars>] holds, in the memory of its device.
template <StructOfDoubles Scalars>
Scalars* scalars_in(const Tensor& x) {
  TM_CHECK(x.numel() == kScalars<Scalars> && x.contiguous(), "scalars ", x.shape(), ", expected ", kScalars<Scalars>);
  return reinterpret_cast<Scalars*>(x.data<double>());
}
template <StructOfDoubles Scalars>
const Scalars* scalars_in(const ConstTensor& x) {
  TM_CHECK(x.numel() == kScalars<Scalars> && x.contiguous(), "scalars ", x.shape(), ", expected ", kScalars<Scalars>);
  return reinterpret_cast<const Scalars*>(x.data<double>());
}

// One scalar of a tensor [kScalars<Scalars>], as a tensor [1]: scalar_in(sums_S, &StepSums::loss_sum).
template <StructOfDoubles Scalars>
Tensor scalar_in(const Tensor& x, double Scalars::*field) {
  const Scalars layout{};
  const auto offset = reinterpret_cast<const char*>(&(layout.*field)) - reinterpret_cast<const char*>(&layout);
  return x.slice(0, offset / static_cast<int64_t>(sizeof(double)), 1);
}

}  // namespace tmamba
