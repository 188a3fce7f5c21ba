// CostModel: step time, memory and the ranking of layouts. What depends on the split of the sequence alone (sp, fold)
// is computed once and shared by every tp, dp and transport.
#include <algorithm>
#include <cmath>

#include "dist/planner/cost.h"

namespace tmamba {

namespace {

double number(int64_t n) { return static_cast<double>(n); }

size_t index_of(const Transport& transport) {
  const auto& all = all_transports();
  if (transport.head_parallel) return all.size() - 1;
  return static_cast<size_t>(std::find(all.begin(), all.end(), transport) - all.begin());
}

// Exchanges of one direction of one layer on one tensor-parallel rank of one: how many, and the bytes that the rank
// that receives most receives.
struct ExchangeCost {
  double first_bytes = 0, later_bytes = 0;  // the first are waited for: halos, and everything head-parallel
  int first = 0, later = 0;
  double bytes() const { return first_bytes + later_bytes; }
};

// Seconds of `steps` exchanges among `size` ranks that stand `stride` apart.
double exchange_seconds(const MachineModel& machine, int64_t size, int64_t stride, int steps, double bytes) {
  if (steps == 0 || size == 1) return 0;
  const int64_t together = std::clamp<int64_t>(machine.ranks_per_node / stride, 1, size);
  if (together == size) return steps * machine.inside.latency + bytes / machine.inside.bandwidth;
  const double remote = number(size - together) / number(size - 1);
  return steps * machine.between.latency + bytes * (1 - remote) / machine.inside.bandwidth +
         bytes * remote / machine.between.bandwidth;
}

// Seconds of a reduce-scatter or all-gather of `bytes`, first within nodes, then between them.
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

}  // namespace

// Bytes that a layer holds on one sequence rank for a whole micro-batch.
struct CostModel::RankMemory {
  SplitBytes kept, shared, scratch;
};

// Seconds and bytes with tp = 1; tensor-parallel ranks divide them.
struct CostModel::LayerCost {
  KindSeconds mean;       // over sequence ranks
  Seconds slowest;        // of any rank, where each mixes its own tokens
  Seconds heads_slowest;  // where each mixes a share of the heads
  double load_max = 0;    // forward and backward of one rank
  int64_t ranges = 0, heads_ranges = 0;
  std::array<std::array<ExchangeCost, 2>, 5> exchanges{};  // by transport, forward and backward
  std::array<std::vector<RankMemory>, 5> memory{};         // by transport, on each rank
  double bytes(const Transport& transport) const {
    const auto& [forward, backward] = exchanges[index_of(transport)];
    return forward.bytes() + backward.bytes();
  }
};

struct CostModel::SequenceCost {
  std::vector<LayerCost> layers;  // by distinct TransPoint
  double balance = 1;
  int64_t tokens_max = 0;
  int split_layers = 0;
};

namespace {

std::array<ExchangeCost, 2> exchange_costs(const PlanDims& dims, const Transport& transport,
                                           const std::vector<RankTraffic>& traffic) {
  std::array<ExchangeCost, 2> costs;
  for (bool backward : {false, true}) {
    ExchangeCost& cost = costs[backward ? 1 : 0];
    for (int i = 0; i < kExchangeKinds; ++i) {
      const auto kind = static_cast<ExchangeKind>(i);
      if (!is_made(dims, kind, backward)) continue;
      int64_t most = 0;
      for (int r = 0; r < dims.sp; ++r) {
        most = std::max(most, exchange_bytes(dims, transport, kind, backward, traffic[static_cast<size_t>(r)], r));
      }
      if (most == 0) continue;
      const bool first = transport.head_parallel || kind == ExchangeKind::halo || kind == ExchangeKind::halo_grads;
      (first ? cost.first_bytes : cost.later_bytes) += number(most);
      (first ? cost.first : cost.later) += 1;
    }
  }
  return costs;
}

}  // namespace

CostModel::CostModel(ModelCosts costs, PlanDims dims, MachineModel machine)
    : costs_(std::move(costs)), dims_(std::move(dims)), machine_(std::move(machine)) {
  dims_.tp = dims_.sp = dims_.dp = dims_.fold = 1;
  for (int64_t p : dims_.transpoints) {
    const auto found = std::find(distinct_.begin(), distinct_.end(), p);
    distinct_of_.push_back(static_cast<size_t>(found - distinct_.begin()));
    if (found == distinct_.end()) distinct_.push_back(p);
  }
  PlanDims one_sequence = dims_;
  one_sequence.global_batch = 0;
  if (const std::string problem = dims_problem(one_sequence); !problem.empty()) throw UserError(problem);
  forward_flops_ = model_flops(costs_, dims_);
}

PlanDims CostModel::with(int tp, int sp, int dp, int fold) const {
  PlanDims dims = dims_;
  dims.tp = tp, dims.sp = sp, dims.dp = dp, dims.fold = fold;
  return dims;
}

CostModel::RankMemory CostModel::rank_memory(const PlanDims& dims, const RankWork& work, const RankTraffic& traffic,
                                             const Transport& transport, int64_t transpoint) const {
  const LayerCosts& costs = costs_.layer(transpoint, dims.tokens);
  const LayerMemory& layer = transport.head_parallel && dims.sp > 1 ? costs.by_heads : costs.by_tokens;
  Counts counts = counts_of(work, dims.sp, transpoint);
  for (double& count : counts.of) count *= number(dims.batch);
  RankMemory memory{layer.kept.at(counts), layer.shared.at(counts), layer.scratch.at(counts)};
  const ExchangeMemory exchanges = exchange_memory(dims, transport, work, traffic, transpoint);
  memory.kept.divided += exchanges.kept, memory.scratch.divided += exchanges.scratch;
  return memory;
}

CostModel::LayerCost CostModel::layer_cost(const PlanDims& dims, int64_t transpoint) const {
  LayerCost cost;
  Seconds rest_slowest;
  const auto raise = [](Seconds& most, const Seconds& to) {
    most = {std::max(most.forward, to.forward), std::max(most.backward, to.backward)};
  };
  const auto work = rank_work(dims.layout(), transpoint);
  for (const RankWork& of_rank : work) {
    const KindSeconds load = layer_seconds(costs_, dims, machine_, of_rank, transpoint);
    for (size_t i = 0; i < load.of.size(); ++i) cost.mean.of[i] = cost.mean.of[i] + load.of[i] / dims.sp;
    raise(cost.slowest, load.sum());
    raise(rest_slowest, load[WorkKind::linear] + load[WorkKind::elementwise]);
    cost.load_max = std::max(cost.load_max, load.sum().total());
    cost.ranges = std::max(cost.ranges, of_rank.kernel_ranges);
  }
  cost.heads_slowest = rest_slowest + cost.mean.mixing();
  const bool attention = transpoint > 0, ssm = transpoint < dims.tokens;
  cost.heads_ranges = attention + ssm + (attention && ssm);
  const auto traffic = rank_traffic(dims.layout(), transpoint);
  for (const Transport& transport : all_transports()) {
    cost.exchanges[index_of(transport)] = exchange_costs(dims, transport, traffic);
    for (size_t r = 0; r < work.size(); ++r) {
      cost.memory[index_of(transport)].push_back(rank_memory(dims, work[r], traffic[r], transport, transpoint));
    }
  }
  return cost;
}

const CostModel::SequenceCost& CostModel::sequence_cost(int sp, int fold) {
  auto& known = sequence_costs_[{sp, fold}];
  if (known) return *known;
  const PlanDims dims = with(1, sp, 1, fold);
  const SequenceSplit split(dims.layout());
  auto cost = std::make_shared<SequenceCost>();
  for (int64_t p : distinct_) {
    cost->layers.push_back(layer_cost(dims, p));
  }
  for (const RankWork& work : rank_work(dims.layout(), 0)) cost->tokens_max = std::max(cost->tokens_max, work.tokens);
  double mean = 0, slowest = 0;
  for (size_t i : distinct_of_) {
    const LayerCost& layer = cost->layers[i];
    mean += layer.mean.sum().total();
    slowest += layer.load_max;
    const int64_t p = distinct_[i];
    cost->split_layers += p > 0 && p < split.tokens && split.begin(split.segment_at(p)) != p;
  }
  cost->balance = mean / slowest;
  known = std::move(cost);
  return *known;
}

void CostModel::add_layer(StepTime& time, const PlanDims& dims, const LayerCost& cost,
                          const Transport& transport) const {
  const auto& mean = cost.mean;
  time.linear += mean[WorkKind::linear].total() / dims.tp;
  time.attention += mean[WorkKind::attention].total() / dims.tp;
  time.ssm += (mean[WorkKind::ssd] + mean[WorkKind::converter]).total() / dims.tp;
  time.elementwise += mean[WorkKind::elementwise].total() / dims.tp;
  const bool heads = transport.head_parallel;
  time.waiting += ((heads ? cost.heads_slowest : cost.slowest).total() - mean.sum().total()) / dims.tp;
  // Backward runs about two kernels for each of forward.
  time.launches += 3 * number(heads ? cost.heads_ranges : cost.ranges) * machine_.launch_seconds;
  const Seconds hidden = mean.mixing() / dims.tp;
  for (bool backward : {false, true}) {
    const ExchangeCost& e = cost.exchanges[index_of(transport)][backward ? 1 : 0];
    const double later = exchange_seconds(machine_, dims.sp, dims.tp, e.later, e.later_bytes / dims.tp);
    time.sp += exchange_seconds(machine_, dims.sp, dims.tp, e.first, e.first_bytes / dims.tp);
    time.sp += std::max(0.0, later - machine_.overlap * (backward ? hidden.backward : hidden.forward));
  }
}

StepTime CostModel::step_time(const PlanDims& dims, const SequenceCost& cost,
                              const std::vector<Transport>& transports) const {
  StepTime time;
  for (size_t l = 0; l < distinct_of_.size(); ++l) {
    add_layer(time, dims, cost.layers[distinct_of_[l]], transports[transports.size() == 1 ? 0 : l]);
  }
  const KindSeconds head = head_seconds(costs_, dims, machine_, cost.tokens_max);
  time.head = head[WorkKind::head].total();
  time.elementwise += head[WorkKind::elementwise].total();
  // Around the mixer and around the MLP: gather and scatter in forward and in backward, and those of recomputation;
  // once more each for embedding and head.
  const double rows = number(cost.tokens_max * dims.batch * dims.dim * dims.activation_bytes) * (1 - 1.0 / dims.tp);
  const auto collectives =
      static_cast<int>((8 + gathers_again(dims.recompute) + sums_again(dims.recompute)) * dims.layers() + 4);
  time.tp = exchange_seconds(machine_, dims.tp, 1, collectives, collectives * rows);
  const double backward_seconds = 2.0 / 3.0 * time.total();

  StepTime step = time;
  const double micro_batches = number(dims.micro_batches());
  for (double* part : {&step.linear, &step.head, &step.attention, &step.ssm, &step.elementwise, &step.launches,
                       &step.waiting, &step.tp, &step.sp}) {
    *part *= micro_batches;
  }
  const double gradients = number(costs_.parameters * dims.state_bytes) / dims.tp;
  const double weights = number(costs_.parameters * dims.activation_bytes) / dims.tp;
  const int64_t replicas = int64_t{dims.sp} * dims.dp, buckets = dims.layers() + 2;
  const double reduce = sharding_seconds(machine_, replicas, dims.tp, buckets, gradients);
  const ZeroSharding sharding = dims.sharding();
  const auto reductions = number(sharding.reductions(dims.micro_batches()));
  step.dp = reductions * std::max(0.0, reduce - machine_.overlap * backward_seconds) +
            (!sharding.shards_optimizer() ? reduce : sharding_seconds(machine_, replicas, dims.tp, buckets, weights));
  const double owned = number(costs_.parameters) / dims.tp / number(sharding.owners());
  const double passes =
      number(7 * dims.state_bytes + (dims.activation_bytes < dims.state_bytes ? dims.activation_bytes : 0));
  step.optimizer = owned * passes /
                   (machine_.memory_bandwidth * machine_.streaming[static_cast<size_t>(WorkKind::elementwise)].forward);
  return step;
}

MemoryUse CostModel::memory_use(const PlanDims& dims, const SequenceCost& cost,
                                const std::vector<Transport>& transports) const {
  const double parameters = number(costs_.parameters) / dims.tp, replicas = number(int64_t{dims.sp} * dims.dp);
  MemoryUse memory;
  memory.parameters = parameters * number(dims.activation_bytes);
  // With ZeRO-2 a rank has two shards of gradients beside those of a pass: its sums, and the micro-batch that arrives.
  memory.gradients =
      parameters * number(dims.state_bytes) * (1 + (dims.sharding().shards_gradients() ? 2 / replicas : 0));
  memory.optimizer = number(costs_.optimizer_bytes) / dims.tp / number(dims.sharding().owners());
  const double other_scratch = costs_.scratch_at(number(cost.tokens_max * dims.batch)).on(dims.tp);
  for (size_t r = 0; r < static_cast<size_t>(dims.sp); ++r) {
    SplitBytes kept;
    double shared = 0, scratch = other_scratch;
    for (size_t l = 0; l < distinct_of_.size(); ++l) {
      const Transport& transport = transports[transports.size() == 1 ? 0 : l];
      const RankMemory& layer = cost.layers[distinct_of_[l]].memory[index_of(transport)][r];
      kept += layer.kept;
      shared = std::max(shared, layer.shared.on(dims.tp));
      scratch = std::max(scratch, layer.scratch.on(dims.tp));
    }
    const double activations = kept.on(dims.tp) + shared;
    if (activations + scratch > memory.activations + memory.scratch) {
      memory.activations = activations, memory.scratch = scratch;
    }
  }
  return memory;
}

Prediction CostModel::predict(int tp, int sp, int dp, int fold, const std::vector<Transport>& transports) {
  const PlanDims dims = with(tp, sp, dp, fold);
  if (const std::string problem = dims_problem(dims); !problem.empty()) throw UserError(problem);
  TM_CHECK(transports.size() == 1 || transports.size() == distinct_of_.size(), transports.size(), " transports for ",
           distinct_of_.size(), " layers");
  for (const Transport& transport : transports) {
    if (const std::string problem = transport_problem(dims, transport); !problem.empty()) throw UserError(problem);
  }
  const SequenceCost& cost = sequence_cost(sp, fold);
  Prediction out;
  out.time = step_time(dims, cost, transports);
  out.memory = memory_use(dims, cost, transports);
  for (size_t l = 0; l < distinct_of_.size(); ++l) {
    out.sp_bytes += cost.layers[distinct_of_[l]].bytes(transports[transports.size() == 1 ? 0 : l]) / tp;
  }
  out.balance = cost.balance;
  const double sequences = number(dims.micro_batches() * dims.batch * dims.dp);
  out.mfu = 3 * forward_flops_ * sequences / (out.time.total() * number(dims.ranks()) * machine_.peak_flops);
  out.tokens_per_second = sequences * number(dims.tokens) / out.time.total();
  out.fits = out.memory.total() <= 0.95 * machine_.memory_bytes;
  return out;
}

std::vector<Transport> CostModel::choose_transports(int tp, int sp, int dp, int fold) {
  const PlanDims dims = with(tp, sp, dp, fold);
  if (const std::string problem = dims_problem(dims); !problem.empty()) throw UserError(problem);
  if (sp == 1) return std::vector<Transport>(distinct_of_.size());  // one rank has nothing to exchange
  const SequenceCost& cost = sequence_cost(sp, fold);
  std::vector<Transport> chosen;
  for (size_t i : distinct_of_) {
    Transport best;
    std::pair<double, double> least;  // seconds, bytes
    for (const Transport& transport : all_transports()) {
      if (!transport_problem(dims, transport).empty()) continue;
      StepTime time;
      add_layer(time, dims, cost.layers[i], transport);
      const std::pair<double, double> price{time.total(), cost.layers[i].bytes(transport)};
      if (transport == all_transports().front() || price < least) best = transport, least = price;
    }
    chosen.push_back(best);
  }
  return chosen;
}

int CostModel::choose_fold(int tp, int sp, int dp, int max_fold) {
  if (const std::string problem = dims_problem(with(tp, sp, dp, 1)); !problem.empty()) throw UserError(problem);
  if (sp == 1) return 1;
  struct Candidate {
    int fold;
    double seconds;
    int split_layers;
  };
  std::vector<Candidate> candidates;
  double least = 0;
  for (int fold = 1; fold <= max_fold; fold *= 2) {
    if (!dims_problem(with(tp, sp, dp, fold)).empty()) continue;
    const double seconds = predict(tp, sp, dp, fold, choose_transports(tp, sp, dp, fold)).time.total();
    candidates.push_back({fold, seconds, sequence_cost(sp, fold).split_layers});
    least = fold == 1 ? seconds : std::min(least, seconds);
  }
  const Candidate* best = nullptr;
  for (const Candidate& c : candidates) {
    if (c.seconds <= 1.01 * least && (!best || c.split_layers < best->split_layers)) best = &c;
  }
  return best->fold;
}

std::vector<LayoutChoice> CostModel::rank_layouts(int64_t ranks, int max_fold) {
  std::vector<LayoutChoice> choices;
  for (int tp = 1; tp <= ranks; ++tp) {
    if (ranks % tp != 0) continue;
    for (int sp = 1; sp <= ranks / tp; ++sp) {
      if (ranks / tp % sp != 0) continue;
      const auto dp = static_cast<int>(ranks / tp / sp);
      for (int fold = 1; fold <= (sp == 1 ? 1 : max_fold); fold *= 2) {
        if (!dims_problem(with(tp, sp, dp, fold)).empty()) continue;
        for (const Transport& transport : all_transports()) {
          // One rank has nothing to exchange, and the fold does not matter where heads are spread.
          if (sp == 1 && !(transport == all_transports().front())) continue;
          if (transport.head_parallel && fold > 1) continue;
          if (!transport_problem(with(tp, sp, dp, fold), transport).empty()) continue;
          LayoutChoice choice{.tp = tp, .sp = sp, .dp = dp, .fold = fold, .transport = transport};
          choice.prediction = predict(tp, sp, dp, fold, {transport});
          choice.split_layers = sequence_cost(sp, fold).split_layers;
          choices.push_back(choice);
        }
      }
    }
  }
  std::stable_sort(choices.begin(), choices.end(), [](const LayoutChoice& a, const LayoutChoice& b) {
    const Prediction &pa = a.prediction, &pb = b.prediction;
    if (pa.fits != pb.fits) return pa.fits;
    if (pa.time.total() != pb.time.total()) return pa.time.total() < pb.time.total();
    if (pa.sp_bytes != pb.sp_bytes) return pa.sp_bytes < pb.sp_bytes;
    return a.split_layers < b.split_layers;
  });
  return choices;
}

Prediction predict(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine,
                   const std::vector<Transport>& transports) {
  return CostModel(costs, dims, machine).predict(dims.tp, dims.sp, dims.dp, dims.fold, transports);
}

std::vector<Transport> choose_transports(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine) {
  return CostModel(costs, dims, machine).choose_transports(dims.tp, dims.sp, dims.dp, dims.fold);
}

int choose_fold(const ModelCosts& costs, PlanDims dims, const MachineModel& machine, int max_fold) {
  dims.grain = 1;
  return CostModel(costs, dims, machine).choose_fold(dims.tp, dims.sp, dims.dp, max_fold);
}

std::vector<LayoutChoice> rank_layouts(const ModelCosts& costs, PlanDims dims, const MachineModel& machine,
                                       int64_t ranks, int max_fold) {
  dims.grain = 1;
  return CostModel(costs, dims, machine).rank_layouts(ranks, max_fold);
}

}  // namespace tmamba
