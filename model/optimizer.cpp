#include "model/optimizer.h"

#include <cmath>
#include <numbers>

namespace tmamba {

std::vector<OwnedRows> all_rows(const ParameterTable& table) {
  std::vector<OwnedRows> owned;
  for (const Parameter& p : table.all()) owned.push_back({&p, 0, p.local_rows});
  return owned;
}

Optimizer::Optimizer(std::vector<OwnedRows> owned, DType param_dtype, Device device)
    : owned_(std::move(owned)),
      has_master_(param_dtype != accumulate_type(param_dtype)),
      acc_(accumulate_type(param_dtype)) {
  for (const OwnedRows& rows : owned_) {
    offset_.push_back(size_);
    size_ = round_up(size_ + rows.rows * rows.parameter->local_cols, 64);
  }
  state_ = Buffer({has_master_ ? 3 : 2, size_}, acc_, device);
}

Tensor Optimizer::rows_of(const Tensor& flat, const OwnedRows& o) {
  const Parameter& p = *o.parameter;
  const Tensor range = flat.slice(0, p.offset + o.begin * p.local_cols, o.rows * p.local_cols);
  return p.dims == 1 ? range : range.split(0, o.rows, p.local_cols);
}

Tensor Optimizer::state(int64_t kind, size_t i) const {
  const OwnedRows& o = owned_[i];
  const Tensor range = state_.tensor({has_master_ ? 3 : 2, size_}, acc_)
                           .select(0, kind)
                           .slice(0, offset_[i], o.rows * o.parameter->local_cols);
  return o.parameter->dims == 1 ? range : range.split(0, o.rows, o.parameter->local_cols);
}

void Optimizer::step(Ops& ops, const Tensor& params, std::span<const Tensor> gradients, const AdamwRule& rule,
                     const ConstTensor& step_S) {
  TM_CHECK(gradients.size() == owned_.size(), gradients.size(), " gradients for ", owned_.size(), " pieces");
  std::vector<AdamwTensor> tensors;
  for (size_t i = 0; i < owned_.size(); ++i) {
    if (owned_[i].rows == 0) continue;
    const Tensor param = rows_of(params, owned_[i]);
    tensors.push_back({.param = param,
                       .master = has_master_ ? master(i) : param,
                       .m = m(i),
                       .v = v(i),
                       .grad = gradients[i],
                       .decay = owned_[i].parameter->decay});
  }
  ops.adamw({.tensors = tensors, .rule = rule, .step_S = step_S});
}

void Optimizer::reset_master(Ops& ops, const Tensor& params) {
  for (size_t i = 0; has_master_ && i < owned_.size(); ++i) ops.copy({master(i), rows_of(params, owned_[i])});
}

double LearningRate::at(int64_t step) const {
  if (step < warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  if (step >= steps) return min;
  const double progress = static_cast<double>(step - warmup) / static_cast<double>(steps - warmup);
  return min + (peak - min) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

StepScalars step_scalars(int64_t step, double lr, const AdamwRule& rule, double grad_scale) {
  return {.lr = lr,
          .bias_correction1 = 1 - std::pow(rule.beta1, static_cast<double>(step)),
          .bias_correction2 = 1 - std::pow(rule.beta2, static_cast<double>(step)),
          .grad_scale = grad_scale,
          .applied = 1};
}

}  // namespace tmamba
