#include "dist/planner/cost.h"

#include <algorithm>
#include <cmath>

namespace tmamba {

namespace {

double number(int64_t n) { return static_cast<double>(n); }

Seconds seconds(const MachineModel& machine, WorkKind kind, const PassCosts& costs, const Counts& counts) {
  const Rate &compute = machine.compute[kind], &streaming = machine.streaming[kind];
  // The slower of arithmetic and memory traffic.
  const auto time = [&](const WorkCost& cost, double Rate::*pass) {
    return std::max(cost.flops.at(counts) / (machine.peak_flops * (compute.*pass)),
                    cost.bytes.at(counts) / (machine.memory_bandwidth * (streaming.*pass)));
  };
  return {time(costs.forward, &Rate::forward),
          time(costs.backward, &Rate::backward) + time(costs.recomputed, &Rate::forward)};
}

// Costs of `batch` sequences on one of `tp` tensor-parallel ranks.
KindSeconds seconds(const MachineModel& machine, const KindCosts& costs, Counts counts, const PlanDims& dims) {
  for (double& count : counts.of) count *= number(dims.batch);
  counts[Term::constant] = 1;  // weights are read once for all sequences
  KindSeconds out;
  for (WorkKind kind : kWorkKinds) out[kind] = seconds(machine, kind, costs[kind], counts) / dims.tp;
  return out;
}

// All tokens of a sequence on one rank.
RankWork whole_sequence(const PlanDims& dims, int64_t transpoint) {
  LayoutSpec spec = dims.layout();
  spec.ranks = spec.fold = spec.grain = 1;
  return rank_work(spec, transpoint).front();
}

}  // namespace

Seconds KindSeconds::sum() const {
  Seconds sum;
  for (const Seconds& kind : *this) sum = sum + kind;
  return sum;
}

Seconds KindSeconds::mixing() const {
  const KindSeconds& at = *this;
  return at[WorkKind::attention] + at[WorkKind::ssd] + at[WorkKind::converter];
}

KindSeconds layer_seconds(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine,
                          const RankWork& work, int64_t transpoint) {
  return seconds(machine, costs.layer(transpoint, dims.tokens).work, counts_of(work, dims.sp, transpoint), dims);
}

KindSeconds head_seconds(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine, int64_t tokens) {
  Counts counts;
  counts[Term::tokens] = number(tokens);
  return seconds(machine, costs.head, counts, dims);
}

LayerFlops layer_flops(const ModelCosts& costs, const PlanDims& dims, int64_t transpoint) {
  const Counts counts = counts_of(whole_sequence(dims, transpoint), 1, transpoint);
  const KindCosts& work = costs.layer(transpoint, dims.tokens).work;
  const auto of = [&](WorkKind kind) { return work[kind].forward.flops.at(counts); };
  return {of(WorkKind::linear), of(WorkKind::attention), of(WorkKind::ssd), of(WorkKind::converter)};
}

double head_flops(const ModelCosts& costs, const PlanDims& dims) {
  Counts counts;
  counts[Term::tokens] = number(dims.tokens);
  return costs.head[WorkKind::head].forward.flops.at(counts);
}

double model_flops(const ModelCosts& costs, const PlanDims& dims) {
  double flops = head_flops(costs, dims);
  for (int64_t p : dims.transpoints) flops += layer_flops(costs, dims, p).total();
  return flops;
}

double paper_flops(double tokens, double transpoint, double width) {
  return transpoint * transpoint * width + (tokens - transpoint) * width * width;
}

PaperCosts paper_costs(double tokens, double width) {
  const double best = std::min(width / 2, tokens);
  return {.transformer = paper_flops(tokens, tokens, width),
          .mamba = paper_flops(tokens, 0, width),
          .optimum = paper_flops(tokens, best, width),
          .best_transpoint = best};
}

double exchange_seconds(const MachineModel& machine, int64_t size, int64_t stride, int steps, double bytes) {
  if (steps == 0 || size == 1) return 0;
  const int64_t together = std::clamp<int64_t>(machine.ranks_per_node / stride, 1, size);
  if (together == size) return steps * machine.inside.latency + bytes / machine.inside.bandwidth;
  const double remote = number(size - together) / number(size - 1);
  return steps * machine.between.latency + bytes * (1 - remote) / machine.inside.bandwidth +
         bytes * remote / machine.between.bandwidth;
}

double sharding_seconds(const MachineModel& machine, int64_t size, int64_t stride, int64_t buckets, double bytes) {
  if (size == 1) return 0;
  const int64_t together = std::clamp<int64_t>(machine.ranks_per_node / stride, 1, size);
  const int64_t nodes = ceil_div(size, together);
  double seconds = 0;
  if (together > 1) {
    seconds += number(buckets) * machine.inside.latency + bytes * (1 - 1 / number(together)) / machine.inside.bandwidth;
  }
  if (nodes > 1) {
    seconds += number(buckets) * machine.between.latency +
               bytes / number(together) * (1 - 1 / number(nodes)) / machine.between.bandwidth;
  }
  return seconds;
}

}  // namespace tmamba
