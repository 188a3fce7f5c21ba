#include "launch/plan/plan_memory.h"

#include <algorithm>

#include "data/checkpoint/slice_relay.h"
#include "dist/comm/absent_communicator.h"
#include "dist/planner/plan_text.h"
#include "launch/plan/model_costs.h"
#include "launch/state/sharding.h"
#include "model/measure.h"

namespace tmamba {

namespace {

void set_static_bytes(RankMemory& memory, const RunConfig& config, const PlanDims& dims, const ParameterTable& table,
                      int zero_rank) {
  const int64_t e = dims.activation_bytes, s = dims.state_bytes;
  memory.parameters = table.flat_size() * e;
  memory.gradients = table.flat_size() * s;
  const ZeroSharding sharding = dims.sharding();
  for (const Bucket& bucket : reduction_buckets(table, config.train.optimizer)) {
    memory.gradients += s * sharding.extra_gradient_elements(bucket, zero_rank);
  }
  const std::vector<StateSlot> slots = optimizer_slots(config.train.optimizer, config.dtype());
  for (const OwnedRows& rows : owned_rows(table, config.train.optimizer, sharding, zero_rank))
    memory.optimizer += state_bytes(slots, rows);
}

// Whether a save is written from a copy (SaveController::slices), and the run takes the memory for it at its start or
// at its first save.
bool copies_saves(const RunConfig& config) {
  const CheckpointConfig& c = config.checkpoint;
  return config.run.device != Device::cpu || (c.async && (c.every.automatic || c.every.steps > 0));
}

// Bytes of what this rank saves (run_slices).
int64_t saved_bytes(const RunConfig& config, const PlanDims& dims, const ParameterTable& table,
                    const MeshCoordinates& at, int zero_rank) {
  const ZeroSharding sharding = dims.sharding();
  if (!sharding.represents_owned(zero_rank)) return 0;
  const std::vector<StateSlot> slots = optimizer_slots(config.train.optimizer, config.dtype());
  int64_t bytes = 0;
  for (const OwnedRows& rows : owned_rows(table, config.train.optimizer, sharding, zero_rank)) {
    if (rows.parameter->shard == Shard::none && at.tp != 0) continue;
    bytes += rows.elements() * dims.activation_bytes + state_bytes(slots, rows);
  }
  return bytes;
}

}  // namespace

RankMemory rank_memory(const RunConfig& config, const RunPlan& plan, const MeshCoordinates& at) {
  const PlanDims& dims = plan.dims;
  const MeshShape shape{dims.tp, dims.sp, dims.dp};
  const ParameterTable table(config.model, at.tp, dims.tp);
  RankMemory memory;
  set_static_bytes(memory, config, dims, table, shape.zero_rank(at));
  if (copies_saves(config)) memory.host_copy = saved_bytes(config, dims, table, at, shape.zero_rank(at));
  if (config.checkpoint.writers == Writers::node && dims.ranks() > 1) memory.host_copy += SliceRelay::kBytesPerRank;
  AbsentCommunicator tp("tp", at.tp, dims.tp), sp("sp", at.sp, dims.sp);
  const auto ops = make_counting_ops(Device::cpu);
  const auto ranks = model_ranks(plan, *ops, sp, tp);
  const ModelMeasure measure = measure_model(config.model, table, *ranks, config.dtype(), Device::cpu, dims.recompute);
  memory.saved = static_cast<int64_t>(measure.saved_bytes);
  memory.scratch = static_cast<int64_t>(measure.scratch_bytes);
  return memory;
}

RankMemory largest_memory(const RunConfig& config, const RunPlan& plan) {
  RankMemory largest;
  for (int sp = 0; sp < plan.dims.sp; ++sp) {
    const RankMemory memory = rank_memory(config, plan, {.tp = 0, .sp = sp, .dp = 0});
    largest.parameters = std::max(largest.parameters, memory.parameters);
    largest.gradients = std::max(largest.gradients, memory.gradients);
    largest.optimizer = std::max(largest.optimizer, memory.optimizer);
    largest.host_copy = std::max(largest.host_copy, memory.host_copy);
    if (memory.activations() > largest.activations()) {
      largest.saved = memory.saved, largest.scratch = memory.scratch;
    }
  }
  return largest;
}

std::string memory_advice(const RunConfig& config, const RunPlan& plan, const MachineModel& machine) {
  const auto needed = [&](Recompute level, int64_t batch) {
    RunPlan other = plan;
    other.costs = measure_costs(config.model, config.train.optimizer, config.dtype(), level);
    other.dims.recompute = level, other.dims.batch = batch;
    return predict(other, machine).memory.total();
  };
  return memory_advice(plan.dims.recompute, plan.dims.batch, 0.95 * machine.memory_bytes, needed);
}

}  // namespace tmamba
