#include "launch/study/study_model.h"

#include <algorithm>

namespace tmamba {

namespace {

using nlohmann::json;

// Ranks that a node has processors for. Ranks never share a GPU, but they may share cores.
int slots_of(const Study& study, const std::vector<MeasuredPoint>& points) {
  const MeasuredPoint& any = points.front();
  if (any.point->config.run.device == Device::cuda) {
    return std::max_element(
               points.begin(), points.end(),
               [](const MeasuredPoint& a, const MeasuredPoint& b) { return a.ranks_per_node() < b.ranks_per_node(); })
        ->ranks_per_node();
  }
  const int threads = std::max(1, study.threads == 0 ? any.processors : static_cast<int>(study.threads));
  return std::max(1, any.processors / threads);
}

CostFit fit_points(const std::vector<MeasuredPoint>& points, int slots) {
  std::vector<MeasuredStep> steps;
  for (const MeasuredPoint& point : points) steps.push_back(point.step());
  return fit_machine(machine_of_device(points.front().point->config), slots, steps);
}

// Model FLOPs per second and rank.
double rate_per_rank(const StudyPoint& point, double seconds) {
  return step_flops(point) / seconds / static_cast<double>(point.ranks);
}

double model_seconds(const SharedMachine& machine, const MeasuredPoint& point) {
  return predict(machine, point.step()).time.total();
}

}  // namespace

std::optional<StudyModel> fit_study(const Study& study, const std::vector<MeasuredPoint>& points) {
  if (points.empty()) return std::nullopt;
  const int slots = slots_of(study, points);
  return StudyModel{.fit = fit_points(points, slots), .slots = slots};
}

json holdout(const Study& study, const std::vector<MeasuredPoint>& points) {
  int64_t most = 0;
  for (const MeasuredPoint& point : points) most = std::max(most, point.point->ranks);
  std::vector<MeasuredPoint> fewer, held;
  std::vector<int64_t> counts;
  for (const MeasuredPoint& point : points) {
    (point.point->ranks == most ? held : fewer).push_back(point);
    const bool new_count = std::find(counts.begin(), counts.end(), point.point->ranks) == counts.end();
    if (point.point->ranks != most && new_count) counts.push_back(point.point->ranks);
  }
  if (counts.size() < 2) return nullptr;
  const SharedMachine machine = fit_points(fewer, slots_of(study, points)).machine;
  json rows = json::array();
  for (const MeasuredPoint& point : held) {
    const MeasuredPoint& base = base_of(points, study, point);
    const double measured = point.step_ms.median() / 1e3, model = model_seconds(machine, point);
    rows.push_back({{"id", point.point->id},
                    {"measured_step_ms", measured * 1e3},
                    {"model_step_ms", model * 1e3},
                    {"measured_efficiency",
                     rate_per_rank(*point.point, measured) / rate_per_rank(*base.point, base.step_ms.median() / 1e3)},
                    {"model_efficiency",
                     rate_per_rank(*point.point, model) / rate_per_rank(*base.point, model_seconds(machine, base))}});
  }
  return {{"ranks", most}, {"points", rows}};
}

json fit_json(const StudyModel& model, int ranks_per_node) {
  json numbers = json::array();
  for (const FittedNumber& number : model.fit.numbers) {
    numbers.push_back(
        {{"name", number.name}, {"prior", number.prior}, {"value", number.value}, {"informed", number.informed}});
  }
  return {{"slots", model.slots},
          {"contention", model.fit.machine.contention},
          {"step_error", model.fit.step_error},
          {"numbers", numbers},
          {"machine", json::parse(machine_to_json(model.fit.machine.with(ranks_per_node)))}};
}

namespace {

// The machine to extrapolate to, and the assumptions about it that were not measured.
struct Target {
  SharedMachine machine;
  int ranks_per_node = 1;
  std::vector<std::string> assumed;
};

Target target_of(const Study& study, const std::vector<MeasuredPoint>& points, const StudyModel& model) {
  Target target{.machine = model.fit.machine};
  bool nodes_measured = false;
  for (const MeasuredPoint& point : points) {
    target.ranks_per_node = std::max(target.ranks_per_node, point.ranks_per_node());
    nodes_measured = nodes_measured || point.hosts > 1;
  }
  // The extrapolation never oversubscribes a node's cores, even if the measurements did.
  target.ranks_per_node = std::min(target.ranks_per_node, model.slots);
  if (study.to_ranks_per_node > 0) target.ranks_per_node = static_cast<int>(study.to_ranks_per_node);
  if (target.ranks_per_node > model.slots) {
    target.assumed.push_back(str("nodes with processors for ", target.ranks_per_node,
                                 " ranks, each as slow as with all ", model.slots,
                                 " slots of the measured node in use"));
    // More slots, with the slowdown of the fully used measured node.
    const double slowdown = 1 + model.fit.machine.contention * (model.slots - 1);
    target.machine.slots = target.ranks_per_node;
    target.machine.contention = (slowdown - 1) / std::max(1, target.ranks_per_node - 1);
  }
  if (nodes_measured) return target;
  Link& between = target.machine.machine.between;
  if (study.between_gb_per_s > 0) between.bandwidth = study.between_gb_per_s * 1e9;
  if (study.between_latency_us > 0) between.latency = study.between_latency_us * 1e-6;
  target.assumed.push_back(
      str("inter-node links of ", between.bandwidth / 1e9, " GB/s and ", between.latency * 1e6, " us per rank"));
  return target;
}

struct ModelPoint {
  StudyPoint point;
  Prediction prediction;
};

// The fastest of a layout's points according to the model. Fewer ranks than a node holds occupy part of one node.
// Throws UserError if no point is possible.
ModelPoint model_point(const Study& study, const RunConfig& base, const Target& target, const std::string& layout,
                       int64_t ranks, int64_t seq_len) {
  const int on_node = static_cast<int>(std::min<int64_t>(ranks, target.ranks_per_node));
  const MachineModel machine = target.machine.with(on_node);
  std::optional<ModelPoint> best;
  for (StudyPoint& point : points_of(study, base, layout, ranks, seq_len, machine)) {
    const Prediction prediction = predict(point.plan, machine);
    if (!best || prediction.time.total() < best->prediction.time.total()) best = {std::move(point), prediction};
  }
  return *best;
}

json row_of(const ModelPoint& at, const std::string& layout, double base_rate, double peak_flops) {
  const double seconds = at.prediction.time.total(), rate = rate_per_rank(at.point, seconds);
  const StepTime& time = at.prediction.time;
  const PlanDims& dims = at.point.plan.dims;
  return {{"series", layout},
          {"ranks", at.point.ranks},
          {"seq_len", at.point.seq_len},
          {"tp", dims.tp},
          {"sp", dims.sp},
          {"dp", dims.dp},
          {"fold", dims.fold},
          {"step_ms", seconds * 1e3},
          {"tokens_per_s", static_cast<double>(at.point.global_batch * at.point.seq_len) / seconds},
          {"efficiency", rate / base_rate},
          {"exposed_ms", (time.tp + time.sp + time.dp) * 1e3},
          {"mfu", peak_flops > 0 ? rate / peak_flops : 0},
          {"memory_bytes", at.prediction.memory.total()}};
}

}  // namespace

json extrapolation(const Study& study, const std::vector<MeasuredPoint>& points, const StudyModel& model,
                   double peak_flops) {
  const Target target = target_of(study, points, model);
  const RunConfig base = study_config(study);
  const std::vector<int64_t> lengths = study.seq_len.empty() ? std::vector<int64_t>{base.data.seq_len} : study.seq_len;
  json rows = json::array(), skipped = json::array();
  for (int64_t seq_len : lengths) {
    // The model's own base, chosen like the measured one: the fastest layout with the fewest ranks.
    double base_rate = 0;
    for (const std::string& layout : study.layouts) {
      try {
        const ModelPoint at = model_point(study, base, target, layout, study.ranks.front(), seq_len);
        base_rate = std::max(base_rate, rate_per_rank(at.point, at.prediction.time.total()));
      } catch (const UserError&) {  // reported by study_grid()
      }
    }
    for (const std::string& layout : study.layouts) {
      for (int64_t ranks : study.to_ranks) {
        try {
          if (base_rate == 0)
            throw UserError(str("the base of ", study.ranks.front(), " ranks has no possible layout"));
          rows.push_back(
              row_of(model_point(study, base, target, layout, ranks, seq_len), layout, base_rate, peak_flops));
        } catch (const UserError& error) {
          skipped.push_back({{"series", layout}, {"ranks", ranks}, {"seq_len", seq_len}, {"why", error.what()}});
        }
      }
    }
  }
  return {
      {"ranks_per_node", target.ranks_per_node}, {"assumed", target.assumed}, {"points", rows}, {"skipped", skipped}};
}

}  // namespace tmamba
