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

// Elements that a ZeRO rank updates, without padding.
int64_t owned_elements(const PlanDims& dims, const Bucket& bucket, int zero_rank) {
  int64_t elements = 0;
  const int owners = dims.zero == 0 ? 1 : dims.sp * dims.dp;
  const Slice slice = cut_at_rows(bucket, owners)[static_cast<size_t>(owners == 1 ? 0 : zero_rank)];
  for (const OwnedRowBlock& rows : rows_in(bucket, slice)) elements += rows.elements.count;
  return elements;
}

void set_static_bytes(RankMemory& memory, const PlanDims& dims, const ParameterTable& table, int zero_rank) {
  const int64_t e = dims.activation_bytes, s = dims.state_bytes;
  memory.parameters = table.flat_size() * e;
  memory.gradients = table.flat_size() * s;
  // AdamW's two moments, and master copies where the parameters are narrower.
  const int64_t states = e < s ? 3 : 2;
  for (const Bucket& bucket : reduction_buckets(table)) {
    memory.optimizer += states * s * owned_elements(dims, bucket, zero_rank);
    // ZeRO-2: the sums of owned gradients, and those of a micro-batch on their way.
    if (dims.zero < 2 || dims.sp * dims.dp == 1) continue;
    memory.gradients += 2 * s * cut_at_rows(bucket, dims.sp * dims.dp)[static_cast<size_t>(zero_rank)].count;
  }
}

// Whether checkpoints are written from a copy (Trainer::slices_to_save).
bool copies_saves(const RunConfig& config) {
  const CheckpointConfig& c = config.checkpoint;
  return config.run.device != "cpu" || (c.async && (c.every.automatic || c.every.steps > 0));
}

// Bytes of a checkpoint that this rank saves: the rows it owns, unless another rank that holds them too saves them.
int64_t saved_bytes(const PlanDims& dims, const ParameterTable& table, const MeshCoordinates& at, int zero_rank) {
  if (dims.zero == 0 && zero_rank > 0) return 0;
  const int owners = dims.zero == 0 ? 1 : dims.sp * dims.dp;
  const bool has_master = dims.activation_bytes < dims.state_bytes;
  const auto buckets = reduction_buckets(table);
  int64_t bytes = 0;
  for (int b = 0; b < table.buckets(); ++b) {
    std::vector<const Parameter*> parameters;
    for (const Parameter& p : table.all()) {
      if (p.bucket == b) parameters.push_back(&p);
    }
    const Bucket& bucket = buckets[static_cast<size_t>(b)];
    const Slice slice = cut_at_rows(bucket, owners)[static_cast<size_t>(owners == 1 ? 0 : zero_rank)];
    for (const OwnedRowBlock& rows : rows_in(bucket, slice)) {
      if (parameters[static_cast<size_t>(rows.block)]->shard == Shard::none && at.tp != 0) continue;
      bytes += rows.elements.count * (dims.activation_bytes + (has_master ? 3 : 2) * dims.state_bytes);
    }
  }
  return bytes;
}

}  // namespace

RankMemory rank_memory(const RunConfig& config, const RunPlan& plan, const MeshCoordinates& at) {
  const PlanDims& dims = plan.dims;
  const MeshShape shape{dims.tp, dims.sp, dims.dp};
  const ParameterTable table(config.model, at.tp, dims.tp);
  RankMemory memory;
  set_static_bytes(memory, dims, table, shape.zero_rank(at));
  if (copies_saves(config)) memory.host_copy = saved_bytes(dims, table, at, shape.zero_rank(at));
  if (config.checkpoint.writers == "node" && dims.ranks() > 1) memory.host_copy += SliceRelay::kBytesPerRank;
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
    other.costs = measure_costs(config.model, config.dtype(), level);
    other.dims.recompute = level, other.dims.batch = batch;
    return predict(other, machine).memory.total();
  };
  return memory_advice(plan.dims.recompute, plan.dims.batch, 0.95 * machine.memory_bytes, needed);
}

}  // namespace tmamba
