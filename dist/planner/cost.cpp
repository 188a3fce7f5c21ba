#include "dist/planner/cost.h"

#include <algorithm>
#include <cmath>

namespace tmamba {

namespace {

double number(int64_t n) { return static_cast<double>(n); }

// Forward arithmetic and memory traffic of one kind of work, and the same of its backward.
struct Load {
  double flops = 0, backward_flops = 0;
  double bytes = 0, backward_bytes = 0;
};

Seconds seconds(const MachineModel& machine, WorkKind kind, const Load& load) {
  const Rate& compute = machine.compute[static_cast<size_t>(kind)];
  const Rate& streaming = machine.streaming[static_cast<size_t>(kind)];
  return {std::max(load.flops / (machine.peak_flops * compute.forward),
                   load.bytes / (machine.memory_bandwidth * streaming.forward)),
          std::max(load.backward_flops / (machine.peak_flops * compute.backward),
                   load.backward_bytes / (machine.memory_bandwidth * streaming.backward))};
}

// Multiply-adds of the projections and the MLP for one token: of all tokens, and of SSM tokens besides.
struct LinearWeights {
  double mixer, mlp, ssm_token;
  double every_token() const { return mixer + mlp; }
};

LinearWeights linear_weights(const PlanDims& dims, int64_t transpoint) {
  const double d = number(dims.dim), inner = number(dims.inner());
  const double dt = transpoint < dims.tokens ? d * number(dims.heads) : 0;
  return {3 * d * inner + inner * d + dt, 3 * d * number(dims.ffn), dims.z_gate ? d * inner : 0};
}

// Backward multiplies each weight twice, and reads its gradient sum, adds and writes it.
Load linear_load(const PlanDims& dims, const RankWork& work, int64_t transpoint) {
  const LinearWeights weights = linear_weights(dims, transpoint);
  const double every = number(work.tokens * dims.batch), ssm = number(work.ssm_tokens * dims.batch);
  const double flops = 2 * (every * weights.every_token() + ssm * weights.ssm_token);
  const double e = number(dims.activation_bytes), parameters = weights.every_token() + weights.ssm_token;
  const double rows = every * (4 * number(dims.dim) + 4 * number(dims.inner()) + 3 * number(dims.ffn)) +
                      (dims.z_gate ? ssm * number(dims.dim + dims.inner()) : 0);
  return {flops, 2 * flops, e * (rows + parameters),
          2 * e * (rows + parameters) + 2 * number(dims.state_bytes) * parameters};
}

// The products of forward that backward computes again: gate and up, at Recompute::all all but `down`.
Load linear_again(const PlanDims& dims, const RankWork& work, int64_t transpoint) {
  if (dims.recompute < Recompute::mlp) return {};
  const bool all = dims.recompute == Recompute::all;
  const LinearWeights weights = linear_weights(dims, transpoint);
  const double every = number(work.tokens * dims.batch), ssm = all ? number(work.ssm_tokens * dims.batch) : 0;
  const double d = number(dims.dim), inner = number(dims.inner()), gate_up = 2.0 / 3.0 * weights.mlp;
  const double products = gate_up + (all ? weights.mixer : 0), z = all ? weights.ssm_token : 0;
  const double rows =
      every * (d + 2 * number(dims.ffn) + (all ? 2 * d + 4 * inner : 0)) + (dims.z_gate ? ssm * (d + inner) : 0);
  return {.flops = 2 * (every * products + ssm * z), .bytes = number(dims.activation_bytes) * (rows + products + z)};
}

// Attention outputs that are kept apart are copied among the mixed rows (model/mixer.h).
double copied_elements(const PlanDims& dims, const RankWork& work) {
  if (dims.recompute == Recompute::none || work.ssm_tokens == 0) return 0;
  return 2 * number(dims.inner()) * number(work.attention_tokens * dims.batch);
}

// Passes over memory of the ops between the products: two norms with residual, convolution with SiLU and RoPE, SwiGLU,
// and for SSM tokens the gated norm. In activations of width d, inner and F.
Load elementwise_load(const PlanDims& dims, const RankWork& work) {
  const double e = number(dims.activation_bytes), d = number(dims.dim), inner = number(dims.inner()),
               f = number(dims.ffn);
  const double every = number(work.tokens * dims.batch), ssm = number(work.ssm_tokens * dims.batch);
  const double conv = 2 * number(dims.conv_width) * 3 * inner * every;
  return {conv, 2 * conv, e * (every * (8 * d + 6 * inner + 3 * f) + ssm * 3 * inner + copied_elements(dims, work)),
          e * (every * (9 * d + 9 * inner + 5 * f) + ssm * 5 * inner)};
}

// All of them again, the norms without their residuals; at Recompute::all the residual behind the mixer is made again.
Load elementwise_again(const PlanDims& dims, const RankWork& work) {
  if (dims.recompute == Recompute::none) return {};
  const Load once = elementwise_load(dims, work);
  const double passes = dims.recompute == Recompute::all ? 2 : 4;
  const double residuals = passes * number(dims.activation_bytes * dims.dim * work.tokens * dims.batch);
  return {.flops = once.flops, .bytes = once.bytes - residuals};
}

Load attention_load(const PlanDims& dims, const RankWork& work) {
  const double inner = number(dims.inner()), flops = 4 * inner * number(work.attention_pairs * dims.batch);
  const double pass = number(dims.activation_bytes) * inner * number(work.attention_tokens * dims.batch);
  return {flops, 2.5 * flops, 4 * pass, 8 * pass};
}

Load ssd_load(const PlanDims& dims, const RankWork& work) {
  const double inner = number(dims.inner()), batch = number(dims.batch);
  const double flops = 4 * inner * batch * (number(work.chunk_pairs) + number(dims.head_dim) * number(work.ssm_tokens));
  const double pass = number(dims.activation_bytes) * inner * batch * number(work.ssm_tokens);
  return {flops, 2.5 * flops, 6 * pass, 12 * pass};
}

Load converter_load(const PlanDims& dims, const RankWork& work) {
  const double rows = number(dims.inner()) * number(work.converter_tokens * dims.batch);
  const double flops = 2 * number(dims.head_dim) * rows, pass = number(dims.activation_bytes) * rows;
  return {flops, 2 * flops, 2 * pass, 4 * pass};
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

KindSeconds layer_seconds(const PlanDims& dims, const MachineModel& machine, const RankWork& work, int64_t transpoint) {
  KindSeconds out;
  const auto add = [&](WorkKind kind, const Load& load, const Load& again) {
    Seconds of = seconds(machine, kind, load);
    of.backward += seconds(machine, kind, again).forward;
    out[kind] = of / dims.tp;
  };
  const Load scan = ssd_load(dims, work);
  add(WorkKind::linear, linear_load(dims, work, transpoint), linear_again(dims, work, transpoint));
  add(WorkKind::elementwise, elementwise_load(dims, work), elementwise_again(dims, work));
  add(WorkKind::attention, attention_load(dims, work), {});
  add(WorkKind::ssd, scan, dims.recompute == Recompute::all ? scan : Load{});
  add(WorkKind::converter, converter_load(dims, work), {});
  return out;
}

KindSeconds head_seconds(const PlanDims& dims, const MachineModel& machine, int64_t tokens) {
  const double n = number(tokens * dims.batch), logits = number(dims.activation_bytes) * n * number(dims.vocab);
  const double flops = 2 * n * number(dims.dim) * number(dims.vocab);
  KindSeconds out;
  out[WorkKind::head] = seconds(machine, WorkKind::head, {flops, 2 * flops, logits, 2 * logits}) / dims.tp;
  // The softmax reads the logits; its gradient overwrites them.
  out[WorkKind::elementwise] = seconds(machine, WorkKind::elementwise, {0, 0, logits, logits}) / dims.tp;
  return out;
}

LayerFlops layer_flops(const PlanDims& dims, int64_t transpoint) {
  PlanDims one = dims;
  one.batch = 1;
  const RankWork work = whole_sequence(dims, transpoint);
  LayerFlops flops;
  flops.mlp = 6 * number(dims.tokens) * number(dims.dim) * number(dims.ffn);
  flops.projections = linear_load(one, work, transpoint).flops - flops.mlp;
  flops.conv = elementwise_load(one, work).flops;
  flops.attention = attention_load(one, work).flops;
  flops.ssd = ssd_load(one, work).flops;
  flops.converter = converter_load(one, work).flops;
  return flops;
}

double head_flops(const PlanDims& dims) { return 2 * number(dims.tokens) * number(dims.dim) * number(dims.vocab); }

double model_flops(const PlanDims& dims) {
  double flops = head_flops(dims);
  for (int64_t p : dims.transpoints) flops += layer_flops(dims, p).total();
  return flops;
}

int64_t parameter_count(const PlanDims& dims) {
  const int64_t d = dims.dim, inner = dims.inner(), heads = dims.heads;
  const int64_t mixer = d + 3 * inner * d + 3 * inner * (dims.conv_width + 1) + (dims.z_gate ? inner * d : 0) +
                        heads * d + 3 * heads + inner + d * inner;
  const int64_t mlp = d + 3 * dims.ffn * d;
  return dims.layers() * (mixer + mlp) + d + dims.vocab * d * (dims.tied_head ? 1 : 2);
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

int64_t fastest_transpoint(const PlanDims& dims, const MachineModel& machine) {
  int64_t best = 0;
  double least = 0;
  for (int64_t step = 0; step <= ceil_div(dims.tokens, dims.chunk); ++step) {
    const int64_t p = std::min(step * dims.chunk, dims.tokens);
    const double total = layer_seconds(dims, machine, whole_sequence(dims, p), p).sum().total();
    if (step == 0 || total < least) best = p, least = total;
  }
  return best;
}

double balance_efficiency(const PlanDims& dims, const MachineModel& machine) {
  double mean = 0, slowest = 0;
  for (int64_t p : dims.transpoints) {
    double sum = 0, most = 0;
    for (const RankWork& work : rank_work(dims.layout(), p)) {
      const double load = layer_seconds(dims, machine, work, p).sum().total();
      sum += load;
      most = std::max(most, load);
    }
    mean += sum / dims.sp;
    slowest += most;
  }
  return mean / slowest;
}

}  // namespace tmamba
