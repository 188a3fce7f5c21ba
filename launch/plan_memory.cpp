#include "launch/plan_memory.h"

#include <algorithm>

#include "dist/absent_communicator.h"
#include "launch/sharding.h"
#include "model/measure.h"

namespace tmamba {

namespace {

// Rows that a zero rank updates, padding not counted.
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

}  // namespace

RankMemory rank_memory(const RunConfig& config, const RunPlan& plan, const MeshCoordinates& at) {
  const PlanDims& dims = plan.dims;
  const MeshShape shape{dims.tp, dims.sp, dims.dp};
  const ParameterTable table(config.model, at.tp, dims.tp);
  RankMemory memory;
  set_static_bytes(memory, dims, table, shape.zero_rank(at));
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
    if (memory.activations() > largest.activations()) {
      largest.saved = memory.saved, largest.scratch = memory.scratch;
    }
  }
  return largest;
}

}  // namespace tmamba
