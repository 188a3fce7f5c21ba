#include "launch/study/study_summary.h"

#include <algorithm>
#include <cstdio>

#include "data/io/fs.h"
#include "launch/plan/plan_memory.h"
#include "launch/study/study_model.h"

namespace tmamba {

namespace {

using nlohmann::json;

json of_quantity(const Quantity& quantity) {
  if (quantity.values.empty()) return nullptr;
  const Interval interval = median_interval(quantity.values);
  return {{"median", quantity.median()},
          {"low", interval.low},
          {"high", interval.high},
          {"confidence", interval.confidence},
          {"values", quantity.values}};
}

// The same for the quantity `over` / value.
json of_inverse(const Quantity& quantity, double over) {
  Quantity inverse;
  for (double value : quantity.values) inverse.values.push_back(over / value);
  json out = of_quantity(inverse);
  out.erase("values");
  return out;
}

// The peak of a rank at a point: on a CPU the GEMM rate that was measured, which other points need not have.
Peak peak_of(const Study& study, const MeasuredPoint& point, const std::vector<MeasuredPoint>& points) {
  if (study.peak_tflops > 0) return {study.peak_tflops * 1e12, "study.peak_tflops"};
  if (point.peak.flops > 0 || point.point->config.run.device == Device::cuda) {
    return point.peak.source.empty() ? Peak{0, "peak unknown: set study.peak_tflops"} : point.peak;
  }
  for (const MeasuredPoint& other : points) {
    if (other.gemm_flops_per_rank == 0) continue;
    return {other.gemm_flops_per_rank, str("a 2048^3 GEMM, measured on each of ", other.point->ranks,
                                           other.point->ranks == 1 ? " rank" : " ranks, all at once")};
  }
  return {};
}

double exposed_ms(const StepTime& time) { return 1e3 * (time.tp + time.sp + time.dp); }

json predicted_by_plan(const StudyPoint& point, const Peak& peak) {
  const MachineModel machine = machine_of_device(point.config);
  const Prediction prediction = predict(point.plan, machine);
  const double seconds = prediction.time.total();
  json out = {{"step_ms", seconds * 1e3},
              {"exposed_ms", exposed_ms(prediction.time)},
              {"memory_bytes", largest_memory(point.config, point.plan).total()}};
  out["mfu"] =
      peak.flops > 0 ? json(step_flops(point) / seconds / static_cast<double>(point.ranks) / peak.flops) : json();
  return out;
}

json efficiency_of(const Study& study, const MeasuredPoint& point, const MeasuredPoint& base) {
  // Rates per rank are proportional to FLOPs / (ranks * seconds). The base's own efficiency is 1 by definition.
  const double scale = step_flops(*point.point) / static_cast<double>(point.point->ranks) /
                       (step_flops(*base.point) / static_cast<double>(base.point->ranks));
  const double value = scale * base.step_ms.median() / point.step_ms.median();
  Interval interval{1, 1, 0.95};
  if (&point != &base) {
    interval = ratio_interval(base.step_ms.values, point.step_ms.values, static_cast<uint64_t>(study.seed));
    interval.low *= scale, interval.high *= scale;
  }
  return {{"value", value}, {"low", interval.low}, {"high", interval.high}, {"confidence", interval.confidence}};
}

json point_json(const Study& study, const MeasuredPoint& m, const MeasuredPoint& base, const Peak& peak,
                const std::optional<StudyModel>& model) {
  const StudyPoint& p = *m.point;
  const PlanDims& dims = p.plan.dims;
  const double tokens = static_cast<double>(p.global_batch * p.seq_len);
  json row = {{"id", p.id},
              {"series", p.series},
              {"ranks", p.ranks},
              {"hosts", m.hosts},
              {"processors", m.processors},
              {"seq_len", p.seq_len},
              {"batch", p.global_batch},
              {"micro_batches", dims.micro_batches()},
              {"tp", dims.tp},
              {"sp", dims.sp},
              {"dp", dims.dp},
              {"fold", dims.fold},
              {"transport", transports_text(p.plan.transports)},
              {"starts", m.step_ms.values.size()},
              {"load", m.load},
              {"step_ms", of_quantity(m.step_ms)},
              {"tokens_per_s", of_inverse(m.step_ms, tokens * 1e3)},
              {"efficiency", efficiency_of(study, m, base)},
              {"base", base.point->id},
              {"memory_bytes", m.memory_bytes},
              {"checkpoint_bytes", m.checkpoint_bytes}};
  const double stall = m.checkpoint_stall_ms.values.empty() ? 0 : m.checkpoint_stall_ms.median();
  row["breakdown"] = {{"compute_ms", of_quantity(m.work_ms)},
                      {"exposed_ms", of_quantity(m.exposed_ms)},
                      {"data_ms", of_quantity(m.data_ms)},
                      {"checkpoint_stall_ms", of_quantity(m.checkpoint_stall_ms)},
                      {"checkpoint_ms", of_quantity(m.checkpoint_ms)},
                      {"checkpoint_ms_per_step", stall / static_cast<double>(study.checkpoint_every)}};
  row["mfu"] = peak.flops > 0
                   ? json(step_flops(p) / (m.step_ms.median() / 1e3) / static_cast<double>(p.ranks) / peak.flops)
                   : json();
  row["predicted"] = predicted_by_plan(p, peak);
  if (model) {
    const StepTime time = predict(model->fit.machine, m.step()).time;
    row["fitted"] = {{"step_ms", 1e3 * time.total()}, {"exposed_ms", exposed_ms(time)}};
  }
  return row;
}

json method_json(const Study& study) {
  return {
      {"repeats", study.repeats},
      {"steps", study.steps},
      {"seed", study.seed},
      {"measurement",
       "each repeat of a point is a job of its own; its step time is the median of the timed steps, each the time "
       "of the slowest rank; repeats alternate over the points, in a new random order each time"},
      {"interval",
       "of the median over repeats: the narrowest between two order statistics that holds the median with at least "
       "95 % probability, whatever the distribution; with fewer than six repeats \"confidence\" is lower"},
      {"efficiency",
       "model FLOP/s per rank over those of the base point; interval from 4000 seeded bootstrap resamples of both, "
       "at 95 %, or with fewer than six repeats at the confidence of the range of the repeats"},
      {"exposed",
       "exposed communication: the step time minus that of the same step with exchanges that move nothing (bench "
       "step)"},
      {"mfu", "3 x forward FLOPs of the model / (step seconds x ranks x peak FLOP/s of a rank), without recomputation"},
      {"checkpoint", str("checkpoint_ms_per_step: the time for which a save blocks training / ", study.checkpoint_every,
                         " steps (study.checkpoint_every)")}};
}

json base_rows(const Study& study, const std::vector<MeasuredPoint>& points) {
  json bases = json::array();
  for (const MeasuredPoint& point : points) {
    const MeasuredPoint& base = base_of(points, study, point);
    if (&base != &point) continue;
    bases.push_back({{"id", base.point->id},
                     {"ranks", base.point->ranks},
                     {"step_ms", base.step_ms.median()},
                     {"tokens_per_s", static_cast<double>(base.point->global_batch * base.point->seq_len) * 1e3 /
                                          base.step_ms.median()}});
  }
  return bases;
}

}  // namespace

json study_summary(const Study& study, const StudyGrid& grid, const std::vector<FailedRepeat>& failed) {
  const std::vector<MeasuredPoint> points = measured_points(study, grid);
  const Peak peak = points.empty() ? Peak{} : peak_of(study, points.front(), points);
  const std::optional<StudyModel> model = fit_study(study, points);
  json summary = {{"kind", "scaling study"}, {"schema", 1},
                  {"name", study.name},      {"mode", study.mode},
                  {"study", study.text},     {"method", method_json(study)},
                  {"points", json::array()}, {"failed", json::array()},
                  {"skipped", json::array()}};
  summary["peak"] = {{"flops_per_rank", peak.flops}, {"source", peak.source}};
  summary["planned"] = {{"points", grid.points.size()},
                        {"starts", grid.points.size() * static_cast<size_t>(study.repeats)}};
  summary["bases"] = base_rows(study, points);
  for (const MeasuredPoint& point : points) {
    summary["points"].push_back(
        point_json(study, point, base_of(points, study, point), peak_of(study, point, points), model));
  }
  for (const FailedRepeat& f : failed) summary["failed"].push_back({{"id", f.id}, {"start", f.repeat}, {"why", f.why}});
  for (const SkippedPoint& s : grid.skipped) {
    summary["skipped"].push_back({{"series", s.series}, {"ranks", s.ranks}, {"seq_len", s.seq_len}, {"why", s.why}});
  }
  if (!model) return summary;
  int most = 1;
  for (const MeasuredPoint& point : points) most = std::max(most, point.ranks_per_node());
  summary["model"] = {{"note", "everything here is predicted by the cost model, not measured"},
                      {"fit", fit_json(*model, std::min(most, model->slots))},
                      {"holdout", holdout(study, points)},
                      {"extrapolation", extrapolation(study, points, *model, peak.flops)}};
  return summary;
}

void write_summary(const Study& study, const json& summary) {
  const std::filesystem::path dir = study.dir;
  make_folders(dir);
  replace_text_durably(dir / "study.json", summary.dump(2) + "\n", random_nonce());
  replace_text_durably(dir / "study.csv", study_csv(summary), random_nonce());
  replace_text_durably(dir / "study-model.csv", extrapolation_csv(summary), random_nonce());
}

}  // namespace tmamba
