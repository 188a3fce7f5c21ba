// Step time, memory and the ranking of layouts. What depends on the split of the sequence alone (sp, fold)
// is computed once and shared by every tp, dp and transport.
#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

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

// Bytes that a layer holds on one sequence rank for a whole micro-batch.
struct RankMemory {
  SplitBytes kept, shared, scratch;
};

// A layer of one TransPoint on one split of the sequence: seconds and bytes with tp = 1; tensor-parallel ranks divide
// them.
struct LayerCost {
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

// All layers on one split of the sequence.
struct SequenceCost {
  std::vector<LayerCost> layers;  // by distinct TransPoint
  double balance = 1;
  int64_t tokens_max = 0;
  int split_layers = 0;
};

std::array<ExchangeCost, 2> exchange_costs(const PlanDims& dims, const Transport& transport,
                                           const std::vector<RankTraffic>& traffic) {
  std::array<ExchangeCost, 2> costs;
  for (bool backward : {false, true}) {
    ExchangeCost& cost = costs[backward ? 1 : 0];
    for (ExchangeKind kind : kExchangeKinds) {
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

void require(const std::string& problem) {
  if (!problem.empty()) throw UserError(problem);
}

// For one model on one machine; remembers what layouts share. Its `dims` are those of a layout.
class CostModel {
 public:
  // tp, sp, dp and fold of `dims` are not used.
  CostModel(const ModelCosts& costs, PlanDims dims, const MachineModel& machine);

  // The dimensions of a layout, unchecked.
  PlanDims with(int tp, int sp, int dp, int fold) const;
  Prediction predict(const PlanDims& dims, const std::vector<Transport>& transports);
  std::vector<Transport> choose_transports(const PlanDims& dims);
  double balance(const PlanDims& dims) { return sequence_cost(dims).balance; }
  int split_layers(const PlanDims& dims) { return sequence_cost(dims).split_layers; }

 private:
  const SequenceCost& sequence_cost(const PlanDims& dims);
  RankMemory rank_memory(const PlanDims& dims, const RankWork& work, const RankTraffic& traffic,
                         const Transport& transport, int64_t transpoint) const;
  LayerCost layer_cost(const PlanDims& dims, int64_t transpoint) const;
  void add_layer(StepTime& time, const PlanDims& dims, const LayerCost& cost, const Transport& transport) const;
  StepTime step_time(const PlanDims& dims, const SequenceCost& cost, const std::vector<Transport>& transports) const;
  MemoryUse memory_use(const PlanDims& dims, const SequenceCost& cost, const std::vector<Transport>& transports) const;

  const ModelCosts& costs_;
  PlanDims dims_;
  const MachineModel& machine_;
  std::vector<int64_t> distinct_;    // the TransPoints, each once
  std::vector<size_t> distinct_of_;  // index into it of each layer
  double forward_flops_ = 0;
  std::map<std::tuple<int, int, int64_t>, std::unique_ptr<const SequenceCost>> sequence_costs_;  // by sp, fold, batch
};

CostModel::CostModel(const ModelCosts& costs, PlanDims dims, const MachineModel& machine)
    : costs_(costs), dims_(std::move(dims)), machine_(machine) {
  dims_.tp = dims_.sp = dims_.dp = dims_.fold = 1;
  for (int64_t p : dims_.transpoints) {
    const auto found = std::find(distinct_.begin(), distinct_.end(), p);
    distinct_of_.push_back(static_cast<size_t>(found - distinct_.begin()));
    if (found == distinct_.end()) distinct_.push_back(p);
  }
  PlanDims one_sequence = dims_;
  one_sequence.global_batch = 0, one_sequence.batch = 1;
  require(dims_problem(one_sequence));
  forward_flops_ = model_flops(costs_, dims_);
}

PlanDims CostModel::with(int tp, int sp, int dp, int fold) const {
  PlanDims dims = dims_;
  dims.tp = tp, dims.sp = sp, dims.dp = dp, dims.fold = fold;
  if (dims.batch == 0) dims.batch = std::max<int64_t>(dims.global_batch / dp, 1);
  return dims;
}

RankMemory CostModel::rank_memory(const PlanDims& dims, const RankWork& work, const RankTraffic& traffic,
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

LayerCost CostModel::layer_cost(const PlanDims& dims, int64_t transpoint) const {
  LayerCost cost;
  Seconds rest_slowest;
  const auto raise = [](Seconds& most, const Seconds& to) {
    most = {std::max(most.forward, to.forward), std::max(most.backward, to.backward)};
  };
  const auto work = rank_work(dims.layout(), transpoint);
  for (const RankWork& of_rank : work) {
    const KindSeconds load = layer_seconds(costs_, dims, machine_, of_rank, transpoint);
    for (WorkKind kind : kWorkKinds) cost.mean[kind] = cost.mean[kind] + load[kind] / dims.sp;
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

const SequenceCost& CostModel::sequence_cost(const PlanDims& layout) {
  auto& known = sequence_costs_[{layout.sp, layout.fold, layout.batch}];
  if (known) return *known;
  PlanDims dims = with(1, layout.sp, 1, layout.fold);
  dims.batch = layout.batch;
  const SequenceSplit split(dims.layout());
  auto cost = std::make_unique<SequenceCost>();
  for (int64_t p : distinct_) cost->layers.push_back(layer_cost(dims, p));
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
  step.optimizer = owned * passes / (machine_.memory_bandwidth * machine_.streaming[WorkKind::elementwise].forward);
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

Prediction CostModel::predict(const PlanDims& dims, const std::vector<Transport>& transports) {
  require(dims_problem(dims));
  TM_CHECK(transports.size() == 1 || transports.size() == distinct_of_.size(), transports.size(), " transports for ",
           distinct_of_.size(), " layers");
  for (const Transport& transport : transports) require(transport_problem(dims, transport));
  const SequenceCost& cost = sequence_cost(dims);
  Prediction out;
  out.time = step_time(dims, cost, transports);
  out.memory = memory_use(dims, cost, transports);
  for (size_t l = 0; l < distinct_of_.size(); ++l) {
    out.sp_bytes += cost.layers[distinct_of_[l]].bytes(transports[transports.size() == 1 ? 0 : l]) / dims.tp;
  }
  out.balance = cost.balance;
  const double sequences = number(dims.micro_batches() * dims.batch * dims.dp);
  out.mfu = 3 * forward_flops_ * sequences / (out.time.total() * number(dims.ranks()) * machine_.peak_flops);
  out.tokens_per_second = sequences * number(dims.tokens) / out.time.total();
  out.fits = out.memory.total() <= 0.95 * machine_.memory_bytes;
  return out;
}

std::vector<Transport> CostModel::choose_transports(const PlanDims& dims) {
  require(dims_problem(dims));
  if (dims.sp == 1) return std::vector<Transport>(distinct_of_.size());  // one rank has nothing to exchange
  const SequenceCost& cost = sequence_cost(dims);
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

}  // namespace

Prediction predict(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine,
                   const std::vector<Transport>& transports) {
  return CostModel(costs, dims, machine).predict(dims, transports);
}

double balance_efficiency(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine) {
  return CostModel(costs, dims, machine).balance(dims);
}

std::vector<Transport> choose_transports(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine) {
  return CostModel(costs, dims, machine).choose_transports(dims);
}

int choose_fold(const ModelCosts& costs, PlanDims dims, const MachineModel& machine, int max_fold) {
  dims.grain = dims.fold = 1;
  require(dims_problem(dims));
  if (dims.sp == 1) return 1;
  CostModel model(costs, dims, machine);
  std::vector<std::tuple<int, int, double>> candidates;  // split layers, fold, seconds
  double least = std::numeric_limits<double>::infinity();
  for (; dims.fold <= max_fold; dims.fold *= 2) {
    if (!dims_problem(dims).empty()) continue;
    const double seconds = model.predict(dims, model.choose_transports(dims)).time.total();
    candidates.emplace_back(model.split_layers(dims), dims.fold, seconds);
    least = std::min(least, seconds);
  }
  std::erase_if(candidates, [&](const auto& c) { return std::get<double>(c) > 1.01 * least; });
  return std::get<1>(*std::min_element(candidates.begin(), candidates.end()));
}

std::vector<LayoutChoice> rank_layouts(const ModelCosts& costs, PlanDims dims, const MachineModel& machine,
                                       int64_t ranks, int max_fold) {
  dims.grain = 1;
  CostModel model(costs, dims, machine);
  std::vector<LayoutChoice> choices;
  // One rank has nothing to exchange: one fold and one transport. The fold does not matter where heads are spread.
  const auto add = [&](int tp, int sp, int dp, int fold) {
    const PlanDims layout = model.with(tp, sp, dp, fold);
    if (!dims_problem(layout).empty()) return;
    for (const Transport& transport : all_transports()) {
      if (sp == 1 && !(transport == all_transports().front())) continue;
      if ((transport.head_parallel && fold > 1) || !transport_problem(layout, transport).empty()) continue;
      choices.push_back({.tp = tp,
                         .sp = sp,
                         .dp = dp,
                         .fold = fold,
                         .transport = transport,
                         .split_layers = model.split_layers(layout),
                         .prediction = model.predict(layout, {transport})});
    }
  };
  for (int tp = 1; tp <= ranks; ++tp) {
    for (int sp = 1; ranks % tp == 0 && sp <= ranks / tp; ++sp) {
      if (ranks / tp % sp != 0) continue;
      for (int fold = 1; fold <= (sp == 1 ? 1 : max_fold); fold *= 2) {
        add(tp, sp, static_cast<int>(ranks / tp / sp), fold);
      }
    }
  }
  std::stable_sort(choices.begin(), choices.end(), [](const LayoutChoice& a, const LayoutChoice& b) {
    const auto key = [](const LayoutChoice& c) {
      return std::tuple(!c.prediction.fits, c.prediction.time.total(), c.prediction.sp_bytes, c.split_layers);
    };
    return key(a) < key(b);
  });
  return choices;
}

}  // namespace tmamba
