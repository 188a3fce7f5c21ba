#include "dist/planner/cost.h"

#include <algorithm>
#include <cmath>

namespace tmamba {

namespace {

double number(int64_t n) { return static_cast<double>(n); }

Seconds seconds(const MachineModel& machine, WorkKind kind, const PassCosts& costs, const Counts& counts) {
  const Rate& compute = machine.compute[static_cast<size_t>(kind)];
  const Rate& streaming = machine.streaming[static_cast<size_t>(kind)];
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
  for (int i = 0; i < kWorkKinds; ++i) {
    const auto kind = static_cast<WorkKind>(i);
    out[kind] = seconds(machine, kind, costs[static_cast<size_t>(i)], counts) / dims.tp;
  }
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
  for (const Seconds& kind : of) sum = sum + kind;
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
  const auto of = [&](WorkKind kind) { return work[static_cast<size_t>(kind)].forward.flops.at(counts); };
  return {of(WorkKind::linear), of(WorkKind::attention), of(WorkKind::ssd), of(WorkKind::converter)};
}

double head_flops(const ModelCosts& costs, const PlanDims& dims) {
  Counts counts;
  counts[Term::tokens] = number(dims.tokens);
  return costs.head[static_cast<size_t>(WorkKind::head)].forward.flops.at(counts);
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

int64_t fastest_transpoint(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine) {
  int64_t best = 0;
  double least = 0;
  for (int64_t step = 0; step <= ceil_div(dims.tokens, dims.chunk); ++step) {
    const int64_t p = std::min(step * dims.chunk, dims.tokens);
    const double total = layer_seconds(costs, dims, machine, whole_sequence(dims, p), p).sum().total();
    if (step == 0 || total < least) best = p, least = total;
  }
  return best;
}

double balance_efficiency(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine) {
  double mean = 0, slowest = 0;
  for (int64_t p : dims.transpoints) {
    double sum = 0, most = 0;
    for (const RankWork& work : rank_work(dims.layout(), p)) {
      const double load = layer_seconds(costs, dims, machine, work, p).sum().total();
      sum += load;
      most = std::max(most, load);
    }
    mean += sum / dims.sp;
    slowest += most;
  }
  return mean / slowest;
}

}  // namespace tmamba
