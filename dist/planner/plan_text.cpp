#include "dist/planner/plan_text.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <set>
#include <tuple>

#include "kernels/base/bytes_text.h"

namespace tmamba {

namespace {

constexpr int kPictureColumns = 72;

// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...) {
  va_list args, again;
  va_start(args, pattern);
  va_copy(again, args);
  const int length = std::vsnprintf(nullptr, 0, pattern, args);
  va_end(args);
  std::string text(static_cast<size_t>(std::max(length, 0)) + 1, '\0');
  std::vsnprintf(text.data(), text.size(), pattern, again);
  va_end(again);
  text.pop_back();
  return text;
}

// "0,8,16" or, where that is long, "0,8,..,88".
std::string list_text(const std::vector<int>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (numbers.size() > 4 && i == 2) text += ",..";
    if (numbers.size() > 4 && i >= 2 && i + 1 < numbers.size()) continue;
    if (i > 0) text += ',';
    text += std::to_string(numbers[i]);
  }
  return text;
}

// Layers with the same properties: the same TransPoint and, if given, the same transport.
struct LayerGroup {
  int64_t transpoint;
  Transport transport;
  std::vector<int> layers;
};

std::vector<LayerGroup> group_layers(const std::vector<int64_t>& transpoints,
                                     const std::vector<Transport>& transports) {
  std::vector<LayerGroup> groups;
  for (size_t l = 0; l < transpoints.size(); ++l) {
    const Transport transport = transports.empty() ? Transport{} : transports[transports.size() == 1 ? 0 : l];
    const auto same = [&](const LayerGroup& g) { return g.transpoint == transpoints[l] && g.transport == transport; };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) group = groups.insert(groups.end(), {transpoints[l], transport, {}});
    group->layers.push_back(static_cast<int>(l));
  }
  return groups;
}

char cell(const SequenceLayout& layout, int64_t transpoint, size_t first, size_t last) {
  const int64_t begin = layout.segments()[first].begin, end = layout.segments()[last].end;
  return end <= transpoint ? 'A' : begin >= transpoint ? 'S' : 'x';
}

std::string picture_heading(const SequenceLayout& layout, const Alignment& alignment) {
  const LayoutSpec& spec = layout.spec();
  std::string text = format("Sequence of %lld tokens in %zu segments of ", static_cast<long long>(spec.tokens),
                            layout.segments().size());
  if (alignment.unit > 0) {
    text += str(alignment.unit, " tokens");
  } else {
    int64_t shortest = spec.tokens, longest = 0;
    for (const Segment& s : layout.segments())
      shortest = std::min(shortest, s.size()), longest = std::max(longest, s.size());
    text += str(shortest, " to ", longest, " tokens");
  }
  text += str(", sp ", spec.ranks, " x fold ", spec.fold);
  if (spec.grain > 1) text += str(", ", spec.grain, " consecutive ones per rank");
  text += str(", chunks of ", spec.chunk, "\n");
  if (alignment.splits.empty()) return text + "Every TransPoint falls between segments.\n";
  return text + str(alignment.splits.size(), " of ", layout.layers(),
                    " layers have a TransPoint inside a segment (x); ", "their greatest common divisor is ",
                    alignment.gcd, "\n");
}

}  // namespace

std::string layout_picture(const SequenceLayout& layout) {
  constexpr char digits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
  const size_t segments = layout.segments().size();
  const size_t per_column = (segments + kPictureColumns - 1) / kPictureColumns;
  std::string text = picture_heading(layout, layout.alignment());
  if (per_column == 1) {
    std::string owners;
    for (const Segment& s : layout.segments()) owners += digits[s.rank % 36];
    text += format("%27s %s\n", layout.ranks() > 36 ? "rank (mod 36, base 36)" : "rank", owners.c_str());
  } else {
    text += str("Each column is ", per_column, " segments.\n");
  }
  text += "layers                   P\n";
  for (const LayerGroup& group : group_layers(layout.spec().transpoints, {})) {
    std::string cells;
    for (size_t k = 0; k < segments; k += per_column) {
      cells += cell(layout, group.transpoint, k, std::min(k + per_column, segments) - 1);
    }
    text += format("%-16.16s %10lld %s\n", list_text(group.layers).c_str(), static_cast<long long>(group.transpoint),
                   cells.c_str());
  }
  return text + "A attention   S SSM   x both\n";
}

std::string load_table(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine) {
  constexpr size_t most_groups = 8, most_ranks = 32;
  auto groups = group_layers(dims.transpoints, {});
  const size_t left_out = groups.size() - std::min(groups.size(), most_groups);
  groups.resize(groups.size() - left_out, {});
  std::vector<std::vector<double>> percent;  // by group and rank
  std::vector<RankWork> work;
  for (const LayerGroup& group : groups) {
    auto& loads = percent.emplace_back();
    double sum = 0;
    work = rank_work(dims.layout(), group.transpoint);
    for (const RankWork& w : work) {
      loads.push_back(layer_seconds(costs, dims, machine, w, group.transpoint).sum().total());
      sum += loads.back();
    }
    for (double& load : loads) load *= 100.0 * static_cast<double>(loads.size()) / sum;
  }
  std::string text = format("Load of each rank, %% of the mean; balance over all layers %.4f\n",
                            balance_efficiency(costs, dims, machine));
  text += "rank     tokens";
  for (const LayerGroup& group : groups) text += format(" %9s", str("P=", group.transpoint).c_str());
  text += "\n";
  for (size_t r = 0; r < work.size() && r < most_ranks; ++r) {
    text += format("%4zu %10lld", r, static_cast<long long>(work[r].tokens));
    for (const auto& loads : percent) text += format(" %9.1f", loads[r]);
    text += "\n";
  }
  if (work.size() > most_ranks) text += str("... and ", work.size() - most_ranks, " more ranks\n");
  if (left_out > 0) text += str("... and ", left_out, " more TransPoints\n");
  return text;
}

std::string exchange_table(const PlanDims& dims, const std::vector<Transport>& transports) {
  if (dims.sp == 1) return "One sequence rank: no exchanges inside the layers.\n";
  std::string text = "Received by a rank in the exchanges of one layer           most       mean over ranks\n";
  int64_t total_most = 0, total_mean = 0;
  for (const LayerGroup& group : group_layers(dims.transpoints, transports)) {
    const auto traffic = rank_traffic(dims.layout(), group.transpoint);
    text += str("P = ", group.transpoint, ", layers ", list_text(group.layers), ", ", name_of(group.transport), "\n");
    for (bool backward : {false, true}) {
      for (ExchangeKind kind : kExchangeKinds) {
        if (!is_made(dims, kind, backward)) continue;
        int64_t most = 0, sum = 0;
        for (int r = 0; r < dims.sp; ++r) {
          const int64_t bytes =
              exchange_bytes(dims, group.transport, kind, backward, traffic[static_cast<size_t>(r)], r);
          most = std::max(most, bytes);
          sum += bytes;
        }
        if (most == 0) continue;
        text += format("  %-9s %-15s %-14s %11s %11s\n", backward ? "backward" : "forward", name_of(kind),
                       name_of(collective_of(kind, group.transport)), bytes_text(most).c_str(),
                       bytes_text(sum / dims.sp).c_str());
        total_most += std::ssize(group.layers) * most;
        total_mean += std::ssize(group.layers) * sum / dims.sp;
      }
    }
  }
  return text + format("All %lld layers, one micro-batch %31s %11s\n", static_cast<long long>(dims.layers()),
                       bytes_text(total_most).c_str(), bytes_text(total_mean).c_str());
}

std::string flops_table(const ModelCosts& costs, const PlanDims& dims) {
  const auto tokens = static_cast<double>(dims.tokens), width = static_cast<double>(dims.dim);
  const PaperCosts paper = paper_costs(tokens, width);
  std::string text = format(
      "Sequence mixing of one layer by the paper's formula P^2 N + (T - P) N^2, T = %.0f, N = %.0f\n", tokens, width);
  text += format("  Transformer (P = T) %.3e    optimum (P = %.0f) %.3e    Mamba (P = 0) %.3e\n", paper.transformer,
                 paper.best_transpoint, paper.optimum, paper.mamba);
  text += format("  relative to the optimum: %.2f : 1 : %.2f\n", paper.transformer / paper.optimum,
                 paper.mamba / paper.optimum);
  text += "Forward GFLOP of one layer and one sequence, counted by a dry run\n";
  text += "          P     paper attention       ssd converter    linear     total\n";
  for (const LayerGroup& group : group_layers(dims.transpoints, {})) {
    const LayerFlops f = layer_flops(costs, dims, group.transpoint);
    text += format("%11lld %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f\n", static_cast<long long>(group.transpoint),
                   paper_flops(tokens, static_cast<double>(group.transpoint), width) / 1e9, f.attention / 1e9,
                   f.ssd / 1e9, f.converter / 1e9, f.linear / 1e9, f.total() / 1e9);
  }
  return text + format("Head %.2f, all layers and head %.2f GFLOP; %.1f million parameters\n",
                       head_flops(costs, dims) / 1e9, model_flops(costs, dims) / 1e9,
                       static_cast<double>(costs.parameters) / 1e6);
}

std::string step_table(const Prediction& prediction, const PlanDims& dims, const MachineModel& machine) {
  const StepTime& t = prediction.time;
  const std::pair<const char*, double> parts[] = {{"linear layers", t.linear},
                                                  {"head", t.head},
                                                  {"attention", t.attention},
                                                  {"SSM and converter", t.ssm},
                                                  {"elementwise", t.elementwise},
                                                  {"kernel launches", t.launches},
                                                  {"waiting for the slowest rank", t.waiting},
                                                  {"tensor-parallel exchanges", t.tp},
                                                  {"exposed sequence exchanges", t.sp},
                                                  {"gradient and weight exchanges", t.dp},
                                                  {"optimizer", t.optimizer}};
  std::string text =
      str("Predicted step on ", dims.ranks(), " x ", machine.name, ": tp ", dims.tp, ", sp ", dims.sp, ", dp ", dims.dp,
          ", fold ", dims.fold, ", ", dims.micro_batches(), " x ", dims.batch, " sequences\n");
  for (const auto& [name, seconds] : parts) {
    text += format("  %-30s %12.3f ms %6.1f %%\n", name, seconds * 1e3, 100 * seconds / t.total());
  }
  return text + format("  %-30s %12.3f ms   %.0f tokens/s, MFU %.1f %%, balance %.4f\n", "step", t.total() * 1e3,
                       prediction.tokens_per_second, 100 * prediction.mfu, prediction.balance);
}

std::string memory_advice(Recompute level, int64_t batch, double limit,
                          const std::function<double(Recompute, int64_t)>& needed) {
  for (Recompute higher : kRecomputeLevels) {
    if (higher <= level) continue;
    const double bytes = needed(higher, batch);
    if (bytes <= limit) return format("train.recompute=%s makes it fit: %.3f GiB", name_of(higher), bytes / kGiB);
  }
  int64_t smaller = batch;
  double least = needed(Recompute::all, batch);
  while (smaller % 2 == 0 && least > limit) least = needed(Recompute::all, smaller /= 2);
  if (least <= limit) {
    return format("train.recompute=all and train.micro_batch=%lld make it fit: %.3f GiB",
                  static_cast<long long>(smaller), least / kGiB);
  }
  return format("train.recompute=all at micro-batch %lld needs %.3f GiB: raise parallel.sp or parallel.tp",
                static_cast<long long>(smaller), least / kGiB);
}

std::string memory_table(const MemoryUse& memory, const MemoryUse& measured, const MachineModel& machine,
                         const std::string& advice) {
  const std::tuple<const char*, double, double> kinds[] = {
      {"parameters", memory.parameters, measured.parameters}, {"gradients", memory.gradients, measured.gradients},
      {"optimizer", memory.optimizer, measured.optimizer},    {"activations", memory.activations, measured.activations},
      {"temporaries", memory.scratch, measured.scratch},      {"sum", memory.total(), measured.total()}};
  std::string text = "Memory of a rank          predicted          dry run\n";
  for (const auto& [name, predicted, found] : kinds) {
    text += format("  %-20s %10.3f GiB %10.3f GiB\n", name, predicted / kGiB, found / kGiB);
  }
  const double limit = 0.95 * machine.memory_bytes;
  if (memory.total() <= limit)
    return text + format("  %-20s %10.3f GiB\n", "free", (machine.memory_bytes - memory.total()) / kGiB);
  return text +
         format("  does not fit: %.3f GiB over the %.3f GiB of 95 %% of the device;\n", (memory.total() - limit) / kGiB,
                limit / kGiB) +
         "  " + advice + "\n";
}

std::string ranking_table(const std::vector<LayoutChoice>& choices, size_t count) {
  std::set<std::array<int, 4>> seen;
  std::string lines;
  bool over = false;
  for (const LayoutChoice& c : choices) {
    if (!seen.insert({c.tp, c.sp, c.dp, c.fold}).second || seen.size() > count) continue;
    const Prediction& p = c.prediction;
    over |= !p.fits;
    lines += format("%4zu %2d %4d %4d %4d %-21s %9.*f %11.0f %5.1f %7.3f %10.2f %7.1f%s\n", seen.size(), c.tp, c.sp,
                    c.dp, c.fold, c.sp == 1 ? "-" : name_of(c.transport).c_str(), p.time.total() < 10 ? 2 : 0,
                    p.time.total() * 1e3, p.tokens_per_second, 100 * p.mfu, p.balance,
                    (p.time.tp + p.time.sp + p.time.dp) * 1e3, p.memory.total() / kGiB, p.fits ? "" : " !");
  }
  std::string text = str("The best ", std::min(count, seen.size()), " of ", seen.size(),
                         " layouts by predicted step time, each with its best transport\n");
  text +=
      "   # tp   sp   dp fold transport               step ms    tokens/s   MFU balance exposed ms     GiB\n" + lines;
  return text + (over ? "! needs more memory than the device has; such layouts come last\n" : "");
}

std::string check_text(const Plan& plan) {
  size_t messages = 0;
  int64_t bytes = 0;
  for (const auto& program : plan.programs) {
    for (const PlanStep& step : program) {
      messages += step.receives.size();
      for (const PlanMessage& m : step.receives) bytes += m.bytes;
    }
  }
  const auto problems = check_plan(plan);
  std::string text =
      format("Plan %s: %zu exchanges, %zu messages, %s per micro-batch over %d ranks\n", plan_hash(plan).c_str(),
             plan.exchanges.size(), messages, bytes_text(bytes).c_str(), plan.dims.sp);
  if (problems.empty()) {
    return text + "Checked: every send has its receive, every need arrives once, one order on all ranks.\n";
  }
  for (const std::string& problem : problems) text += problem + "\n";
  return text;
}

std::string plan_report(const ModelCosts& costs, const PlanDims& dims, const std::vector<Transport>& transports,
                        const MachineModel& machine, const MemoryUse& measured, const std::string& advice) {
  const Prediction prediction = predict(costs, dims, machine, transports);
  return flops_table(costs, dims) + "\n" + layout_picture(SequenceLayout(dims.layout())) + "\n" +
         load_table(costs, dims, machine) + "\n" + exchange_table(dims, transports) + "\n" +
         step_table(prediction, dims, machine) + "\n" + memory_table(prediction.memory, measured, machine, advice);
}

}  // namespace tmamba
