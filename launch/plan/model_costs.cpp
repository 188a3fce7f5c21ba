#include "launch/plan/model_costs.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dist/comm/absent_communicator.h"
#include "dist/planner/cost_work.h"
#include "dist/planner/linear_solve.h"
#include "model/measure.h"
#include "model/optimizer.h"

namespace tmamba {

namespace {

using Numbers = Vector;

// y - scale * x
Numbers minus(Numbers y, const Numbers& x, double scale = 1) {
  for (size_t i = 0; i < y.size(); ++i) y[i] -= scale * x[i];
  return y;
}

// A short sequence and the rank whose costs are measured: the only one, or the first of `ranks` head-parallel ranks,
// each with two segments (zigzag).
struct Probe {
  int64_t tokens = 0;
  int64_t transpoint = 0;
  int64_t chunk = 16;
  int ranks = 1;

  LayoutSpec layout() const {
    return {.tokens = tokens, .ranks = ranks, .fold = ranks > 1 ? 2 : 1, .chunk = chunk, .transpoints = {transpoint}};
  }
  Counts counts() const {
    Counts counts = counts_of(rank_work(layout(), transpoint).front(), ranks, transpoint);
    counts[Term::tokens] = static_cast<double>(tokens);
    return counts;
  }
};

// The coefficients of `terms` in each number that measure(probe) returns, from as many probes as there are terms. They
// are integers: FLOPs and bytes.
template <class Measure>
std::vector<LinearCost> coefficients(const std::vector<Term>& terms, const std::vector<Probe>& probes,
                                     Measure measure) {
  TM_CHECK(probes.size() == terms.size(), probes.size(), " probes for ", terms.size(), " terms");
  Matrix rows, sides;
  for (const Probe& probe : probes) {
    const Counts counts = probe.counts();
    Numbers& row = rows.emplace_back();
    for (Term term : terms) row.push_back(counts[term]);
    sides.push_back(measure(probe));
  }
  std::vector<LinearCost> costs(sides.front().size());
  const Matrix of_terms = solve_linear(std::move(rows), std::move(sides));
  for (size_t i = 0; i < terms.size(); ++i) {
    for (size_t k = 0; k < costs.size(); ++k) costs[k].per[terms[i]] = std::round(of_terms[i][k]);
  }
  return costs;
}

class DryRuns {
 public:
  DryRuns(ModelConfig config, DType dtype, Recompute level) : config_(std::move(config)), dtype_(dtype), level_(level) {
    const int64_t divided = std::gcd(config_.heads, config_.ffn);
    tp_ = smallest_divisor(divided), heads_ = smallest_divisor(config_.heads);
  }

  LayerCosts layer(bool mixed) const;
  KindCosts head() const;
  std::vector<ScratchSample> scratch() const;

 private:
  // The smallest divisor of n above 1; 1 if n is 1.
  static int smallest_divisor(int64_t n) {
    for (int64_t d = 2; d <= n; ++d) {
      if (n % d == 0) return static_cast<int>(d);
    }
    return 1;
  }

  ModelMeasure run(const ModelConfig& base, const Probe& probe, int64_t layers, int tp_size, Recompute level,
                   Pass pass) const {
    ModelConfig model = base;
    model.layers = layers, model.schedule = {TransPoint::of_tokens(probe.transpoint)}, model.chunk = probe.chunk;
    LayoutSpec layout = probe.layout();
    layout.conv_width = static_cast<int>(model.conv);
    layout.transpoints.assign(static_cast<size_t>(layers), probe.transpoint);
    AbsentCommunicator sp("sp", 0, probe.ranks), tp("tp", 0, tp_size);
    const auto ops = make_counting_ops(Device::cpu);
    ModelRanks ranks(layout, 1, *ops, sp, tp, {Transport{.head_parallel = true}});
    return measure_model(model, ParameterTable(model, 0, tp_size), ranks, dtype_, Device::cpu, level, pass);
  }

  Numbers work(const Probe& probe, int64_t layers) const;
  Numbers saved_and_scratch(const Probe& probe, int tp_size) const;
  KindCosts work_of(const std::vector<LinearCost>& costs) const;
  Numbers split_bytes(const Probe& probe) const;

  ModelConfig config_;
  DType dtype_;
  Recompute level_;
  int tp_, heads_;  // the smallest sizes above 1 that the tensor axis, and a head-parallel sequence axis, can have
};

// FLOPs and bytes by pass (forward, backward, recomputed) and kind.
Numbers DryRuns::work(const Probe& probe, int64_t layers) const {
  const auto numbers = [&](Recompute level, Pass pass) {
    Numbers of(2 * kWorkKinds.size());
    for (const auto& [op, use] : run(config_, probe, layers, 1, level, pass).ops) {
      if (const auto kind = kind_of(op)) {
        of[2 * static_cast<size_t>(*kind)] += use.flops, of[2 * static_cast<size_t>(*kind) + 1] += use.bytes;
      }
    }
    return of;
  };
  const Numbers forward = numbers(Recompute::none, Pass::forward);
  const Numbers both = numbers(Recompute::none, Pass::forward_backward);
  const Numbers recomputing = level_ == Recompute::none ? both : numbers(level_, Pass::forward_backward);
  Numbers all = forward;
  for (const Numbers& more : {minus(both, forward), minus(recomputing, both)}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}

KindCosts DryRuns::work_of(const std::vector<LinearCost>& costs) const {
  KindCosts out;
  size_t at = 0;
  for (WorkCost PassCosts::*pass : {&PassCosts::forward, &PassCosts::backward, &PassCosts::recomputed}) {
    for (PassCosts& kind : out) (kind.*pass).flops = costs[at++], (kind.*pass).bytes = costs[at++];
    // Attention tokens are scanned by the Memory Converter alone.
    for (LinearCost WorkCost::*cost : {&WorkCost::flops, &WorkCost::bytes}) {
      double& scanned = (out[WorkKind::ssd].*pass.*cost).per[Term::attention_tokens];
      (out[WorkKind::converter].*pass.*cost).per[Term::attention_tokens] = scanned;
      scanned = 0;
    }
  }
  return out;
}

// Bytes kept by each layer, shared by all, and of the mixer's scratch.
Numbers DryRuns::saved_and_scratch(const Probe& probe, int tp_size) const {
  const auto measure = [&](const ModelConfig& model, int64_t layers) {
    return run(model, probe, layers, tp_size, level_, Pass::forward_backward);
  };
  ModelConfig mixer = config_;
  mixer.ffn = mixer.vocab = tp_size;  // so that the mixer takes most
  const auto one = static_cast<double>(measure(config_, 1).saved_bytes),
             two = static_cast<double>(measure(config_, 2).saved_bytes);
  return {two - one, 2 * one - two, static_cast<double>(measure(mixer, 1).scratch_bytes)};
}

// The same as two halves: what tensor-parallel ranks divide and what each holds whole. Bytes are linear in 1 / tp, so
// two sizes of the tensor axis determine both.
Numbers DryRuns::split_bytes(const Probe& probe) const {
  const Numbers one = saved_and_scratch(probe, 1);
  Numbers divided = one;
  if (tp_ > 1) {
    divided = minus(one, saved_and_scratch(probe, tp_));
    for (double& x : divided) x *= tp_ / (tp_ - 1.0);
  }
  const Numbers whole = minus(one, divided);
  divided.insert(divided.end(), whole.begin(), whole.end());
  return divided;
}

LayerCosts DryRuns::layer(bool mixed) const {
  using Terms = std::vector<Term>;
  LayerCosts costs;
  // Mixed: 256 attention and 256 SSM tokens, then more of either, and longer chunks.
  const auto probe = [&](int64_t attention, int64_t ssm, int64_t chunk = 16) {
    return Probe{.tokens = attention + (mixed ? ssm : 0), .transpoint = attention, .chunk = chunk};
  };
  Terms terms{Term::constant, Term::attention_tokens, Term::attention_pairs};
  std::vector<Probe> probes{probe(256, 256), probe(512, 256), probe(768, 256)};
  if (mixed) {
    terms.insert(terms.end(), {Term::ssm_tokens, Term::chunk_pairs});
    probes.insert(probes.end(), {probe(256, 512), probe(256, 256, 32)});
  }
  costs.work = work_of(coefficients(terms, probes, [&](const Probe& p) { return minus(work(p, 2), work(p, 1)); }));

  terms = {Term::constant, Term::attention_tokens};
  probes = {probe(256, 256), probe(512, 256)};
  if (mixed) terms.push_back(Term::ssm_tokens), probes.push_back(probe(256, 512));
  const auto bytes = coefficients(terms, probes, [&](const Probe& p) { return split_bytes(p); });
  costs.by_tokens = {{bytes[0], bytes[3]}, {bytes[1], bytes[4]}, {bytes[2], bytes[5]}};
  if (heads_ == 1) return costs;

  // Head-parallel layers hold the same bytes whole and divide others. The rank has one segment at either end of the
  // sequence: 256 attention tokens of its 512, which are all of the sequence or half of them, then others.
  const auto zigzag = [&](int64_t segment, int64_t attention) {
    const int64_t tokens = 2 * heads_ * segment;
    return Probe{.tokens = tokens, .transpoint = mixed ? attention : tokens, .ranks = heads_};
  };
  terms = {Term::head_share, Term::attention_tokens};
  probes = {zigzag(256, 256), zigzag(512, 512)};
  if (mixed) {
    terms.insert(terms.end(), {Term::ssm_tokens, Term::head_attention_tokens});
    probes.insert(probes.end(), {zigzag(256, 512), zigzag(256, 128)});
  }
  const auto divided = coefficients(terms, probes, [&](const Probe& p) {
    Numbers all = saved_and_scratch(p, 1);
    for (size_t i = 0; i < all.size(); ++i) all[i] -= bytes[i + 3].at(p.counts());
    return all;
  });
  costs.by_heads = {{divided[0], bytes[3]}, {divided[1], bytes[4]}, {divided[2], bytes[5]}};
  return costs;
}

KindCosts DryRuns::head() const {
  // So few tokens that the head takes them in one chunk, which reads its weight once.
  const std::vector<Probe> probes{{.tokens = 32, .transpoint = 32}, {.tokens = 64, .transpoint = 64}};
  KindCosts costs = work_of(coefficients({Term::constant, Term::tokens}, probes, [&](const Probe& p) {
    const Numbers one = work(p, 1), layer = minus(work(p, 2), one);
    return minus(one, layer);
  }));
  std::swap(costs[WorkKind::head], costs[WorkKind::linear]);
  return costs;
}

std::vector<ScratchSample> DryRuns::scratch() const {
  std::vector<ScratchSample> samples;
  for (int64_t rows = 16; rows <= int64_t{1} << 24; rows *= 4) {
    const Probe probe{.tokens = rows, .transpoint = rows};
    const auto bytes = [&](int tp) {
      return static_cast<double>(run(config_, probe, 1, tp, level_, Pass::forward_backward).scratch_bytes);
    };
    const double one = bytes(1), divided = tp_ == 1 ? one : (one - bytes(tp_)) * tp_ / (tp_ - 1);
    samples.push_back({static_cast<double>(rows), {.divided = divided, .whole = one - divided}});
  }
  return samples;
}

}  // namespace

std::optional<WorkKind> kind_of(const std::string& op) {
  if (op.starts_with("embedding")) return std::nullopt;
  if (op.starts_with("linear")) return WorkKind::linear;
  if (op.starts_with("attention")) return WorkKind::attention;
  return op.starts_with("ssd") ? WorkKind::ssd : WorkKind::elementwise;
}

ModelCosts measure_costs(const ModelConfig& config, const OptimizerOptions& optimizer, DType dtype, Recompute level) {
  const DryRuns runs(config, dtype, level);
  const ParameterTable table(config);
  const std::vector<StateSlot> slots = optimizer_slots(optimizer, dtype);
  int64_t optimizer_bytes = 0;
  for (const OwnedRows& rows : all_rows(table)) optimizer_bytes += state_bytes(slots, rows);
  return {.parameters = table.global_size(),
          .optimizer_bytes = optimizer_bytes,
          .mixed = runs.layer(true),
          .attention = runs.layer(false),
          .head = runs.head(),
          .scratch = runs.scratch()};
}

}  // namespace tmamba
