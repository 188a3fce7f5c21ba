#include "model/optimizer.h"

#include <cmath>
#include <numbers>

namespace tmamba {

std::vector<OwnedRows> all_rows(const ParameterTable& table) {
  std::vector<OwnedRows> owned;
  for (const Parameter& p : table.all()) owned.push_back({&p, 0, p.local_rows});
  return owned;
}

int64_t unit_rows(const Parameter& p, OwnershipUnit unit) {
  return unit == OwnershipUnit::row ? 1 : exact_div(p.local_rows, std::ssize(p.stored));
}

namespace {

// Places of AdamW's slots in the table.
enum AdamwSlot : size_t { kM, kV, kMaster };

constexpr int64_t kAlignment = 64;  // elements between state tensors

}  // namespace

OwnershipUnit ownership_unit(const OptimizerOptions& /*options*/, const Parameter& /*parameter*/) {
  return OwnershipUnit::row;
}

std::vector<StateSlot> optimizer_slots(const OptimizerOptions& /*options*/, DType param_dtype) {
  const DType acc = accumulate_type(param_dtype);
  std::vector<StateSlot> slots{{.name = "m", .dtype = acc}, {.name = "v", .dtype = acc}};
  if (param_dtype != acc) slots.push_back({.name = "master", .dtype = acc, .master = true});
  return slots;
}

int64_t state_bytes(std::span<const StateSlot> slots, const OwnedRows& owned) {
  int64_t bytes = 0;
  for (const StateSlot& slot : slots) bytes += slot.elements(owned) * static_cast<int64_t>(size_of(slot.dtype));
  return bytes;
}

Optimizer::Optimizer(std::vector<OwnedRows> owned, DType param_dtype, Device device, const OptimizerOptions& options)
    : Optimizer(std::move(owned), optimizer_slots(options, param_dtype), device, options) {}

Optimizer::Optimizer(std::vector<OwnedRows> owned, std::vector<StateSlot> slots, Device device,
                     const OptimizerOptions& options)
    : owned_(std::move(owned)), slots_(std::move(slots)), options_(options) {
  for (const StateSlot& slot : slots_) {
    Storage& storage = storage_.emplace_back();
    for (const OwnedRows& rows : owned_) {
      storage.offset.push_back(storage.size);
      storage.size = round_up(storage.size + slot.elements(rows), kAlignment);
    }
    storage.buffer = Buffer({storage.size}, slot.dtype, device);
  }
}

Tensor Optimizer::rows_of(const Tensor& flat, const OwnedRows& o) {
  const Parameter& p = *o.parameter;
  const Tensor range = flat.slice(0, p.offset + o.begin * p.local_cols, o.elements());
  return p.dims == 1 ? range : range.split(0, o.rows, p.local_cols);
}

Tensor Optimizer::state(size_t slot, size_t i) const {
  const OwnedRows& o = owned_[i];
  const Storage& storage = storage_[slot];
  const Tensor range =
      storage.buffer.tensor({storage.size}, slots_[slot].dtype).slice(0, storage.offset[i], slots_[slot].elements(o));
  return o.parameter->dims == 1 || slots_[slot].shape == SlotShape::rows
             ? range
             : range.split(0, o.rows, o.parameter->local_cols);
}

int64_t Optimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const Storage& storage : storage_) bytes += static_cast<int64_t>(storage.buffer.bytes());
  return bytes;
}

StepScalars Optimizer::step_scalars(int64_t step, double lr) const {
  return {.lr = lr,
          .bias_correction1 = 1 - std::pow(options_.betas[0], static_cast<double>(step)),
          .bias_correction2 = 1 - std::pow(options_.betas[1], static_cast<double>(step)),
          .grad_scale = 1,
          .applied = 1};
}

void Optimizer::step(Ops& ops, const Tensor& params, std::span<const Tensor> gradients, const ConstTensor& step_S) {
  TM_CHECK(gradients.size() == owned_.size(), "Optimizer::step: ", gradients.size(), " gradients for ", owned_.size(),
           " ranges of owned rows");
  const bool has_master = slots_.size() > kMaster && slots_[kMaster].master;
  std::vector<AdamwTensor> tensors;
  for (size_t i = 0; i < owned_.size(); ++i) {
    if (owned_[i].rows == 0) continue;
    const Tensor param = rows_of(params, owned_[i]);
    tensors.push_back({.param = param,
                       .master = has_master ? state(kMaster, i) : param,
                       .m = state(kM, i),
                       .v = state(kV, i),
                       .grad = gradients[i],
                       .decay = owned_[i].parameter->decay});
  }
  const AdamwRule rule{.beta1 = options_.betas[0],
                       .beta2 = options_.betas[1],
                       .eps = options_.eps,
                       .weight_decay = options_.weight_decay};
  ops.adamw({.tensors = tensors, .rule = rule, .step_S = step_S});
}

void Optimizer::reset_master(Ops& ops, const Tensor& params) {
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    if (!slots_[slot].master) continue;
    for (size_t i = 0; i < owned_.size(); ++i) ops.copy({state(slot, i), rows_of(params, owned_[i])});
  }
}

double LearningRate::at(double position) const {
  if (position < warmup) return peak * position / warmup;
  if (position >= end) return min;
  const double progress = (position - warmup) / (end - warmup);
  return min + (peak - min) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

}  // namespace tmamba
