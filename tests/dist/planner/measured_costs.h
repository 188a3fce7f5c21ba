// The planner's functions for the models of its tests: costs are measured by dry runs of a model with the dimensions of
// the plan, once for each model.
#pragma once

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "dist/planner/cost.h"
#include "dist/planner/plan_text.h"
#include "launch/plan/model_costs.h"

namespace tmamba {

inline const ModelCosts& costs_of(const PlanDims& dims) {
  const auto key = std::tuple(dims.dim, dims.layers(), dims.heads, dims.ffn, dims.vocab, dims.conv_width,
                              dims.tied_head, dims.z_gate, dims.activation_bytes, dims.recompute);
  static std::map<std::remove_const_t<decltype(key)>, ModelCosts> known;
  if (const auto found = known.find(key); found != known.end()) return found->second;
  ModelConfig model{.vocab = dims.vocab,
                    .dim = dims.dim,
                    .heads = dims.heads,
                    .layers = dims.layers(),
                    .ffn = dims.ffn,
                    .conv = dims.conv_width};
  model.schedule = {TransPoint::of_tokens(0)}, model.tied_head = dims.tied_head, model.z_gate = dims.z_gate;
  TM_CHECK(dims.head_dim == model.head_dim(), "heads of ", dims.head_dim, " channels in a model of ", dims.dim);
  const DType dtype = dims.activation_bytes == 2 ? DType::bf16 : dims.activation_bytes == 4 ? DType::f32 : DType::f64;
  return known[key] = measure_costs(model, {}, dtype, dims.recompute);
}

inline Prediction predict(const PlanDims& dims, const MachineModel& machine, const std::vector<Transport>& transports) {
  return predict(costs_of(dims), dims, machine, transports);
}
inline std::vector<Transport> choose_transports(const PlanDims& dims, const MachineModel& machine) {
  return choose_transports(costs_of(dims), dims, machine);
}
inline int choose_fold(const PlanDims& dims, const MachineModel& machine) {
  return choose_fold(costs_of(dims), dims, machine);
}
inline std::vector<LayoutChoice> rank_layouts(const PlanDims& dims, const MachineModel& machine, int64_t ranks,
                                              int max_fold = 16) {
  return rank_layouts(costs_of(dims), dims, machine, ranks, max_fold);
}
inline KindSeconds layer_seconds(const PlanDims& dims, const MachineModel& machine, const RankWork& work, int64_t p) {
  return layer_seconds(costs_of(dims), dims, machine, work, p);
}
inline KindSeconds head_seconds(const PlanDims& dims, const MachineModel& machine, int64_t tokens) {
  return head_seconds(costs_of(dims), dims, machine, tokens);
}
inline LayerFlops layer_flops(const PlanDims& dims, int64_t p) { return layer_flops(costs_of(dims), dims, p); }
inline double model_flops(const PlanDims& dims) { return model_flops(costs_of(dims), dims); }
inline double balance_efficiency(const PlanDims& dims, const MachineModel& machine) {
  return balance_efficiency(costs_of(dims), dims, machine);
}

}  // namespace tmamba
