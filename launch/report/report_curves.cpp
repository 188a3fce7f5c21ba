// Draws the curves and bars of a run's report.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>

#include "launch/cli/format.h"
#include "launch/report/html.h"
#include "launch/report/report.h"

namespace tmamba {

namespace {

using StepValue = std::function<double(const StepRecord&)>;

std::vector<ChartPoint> points_of(const RunRecord& run, const StepValue& value) {
  std::vector<ChartPoint> points;
  points.reserve(run.kept.steps.size());
  for (const StepRecord& step : run.kept.steps) points.push_back({static_cast<double>(step.step), value(step)});
  return points;
}

struct Curve {
  std::string title, unit, name;
  StepValue value;
  std::function<double(const PauseRecord&)> held_out = {};  // validation values; optional
  bool log = false;
  std::optional<double> min = {};
  bool smooth = true;
};

bool any_finite(const std::vector<ChartPoint>& points) {
  return std::any_of(points.begin(), points.end(), [](const ChartPoint& p) { return std::isfinite(p.y); });
}

// Adds the thinned values and, if there are many, their means on top.
void add_steps(LineChart& chart, const Curve& curve, const ReportRun& run, int colour, const std::string& name,
               int64_t groups) {
  const std::vector<ChartPoint> points = points_of(run.record, curve.value);
  const bool many = curve.smooth && std::ssize(points) > 60;
  chart.series.push_back(
      {.name = many ? "" : name, .points = thinned(points, groups), .colour = colour, .faint = many});
  if (!many) return;
  const int64_t ranges = std::clamp<int64_t>(std::ssize(points) / 8, 10, std::max<int64_t>(10, groups / 3));
  chart.series.push_back({.name = name, .points = averaged(points, ranges), .colour = colour});
}

// A series per number of tokens that evaluations were over: those of a part of the data and of all of it are not values
// of one curve.
void add_held_out(LineChart& chart, const Curve& curve, const ReportRun& run, int colour, const std::string& name,
                  int64_t groups) {
  std::map<double, std::vector<ChartPoint>> by_tokens;  // -1: not recorded
  for (const PauseRecord& pause : run.record.kept.pauses) {
    const double value = curve.held_out(pause), tokens = pause.valid_tokens;
    if (std::isfinite(value)) {
      by_tokens[std::isfinite(tokens) ? tokens : -1].push_back({static_cast<double>(pause.step), value});
    }
  }
  for (const auto& [tokens, points] : by_tokens) {
    const std::string over = tokens < 0 ? "" : str(" (", count_text(tokens), " tokens)");
    chart.series.push_back({.name = name + (by_tokens.size() > 1 ? over : ""),
                            .points = thinned(points, groups / 2),
                            .colour = colour,
                            .dashed = true,
                            .markers = points.size() <= 40});
  }
}

std::vector<ChartMark> marks_of(const RunRecord& run) {
  std::vector<ChartMark> marks;
  for (const EventRecord& event : run.events) {
    if (event.step() < 0) continue;
    const bool back = event.kind == "rollback", again = event.kind == "resume" && event.step() > 0;
    if (back || again) {
      marks.push_back(
          {static_cast<double>(event.step()), str(back ? "rolled back to step " : "resumed from step ", event.step())});
    }
  }
  return marks;
}

std::string drawn(const Curve& curve, const std::vector<ReportRun>& runs, const ReportDetail& detail) {
  LineChart chart;
  chart.title = curve.title;
  chart.x.label = "step";
  chart.y = {.label = curve.unit, .log = curve.log, .min = curve.min};
  const bool one = runs.size() == 1;
  bool anything = false;
  for (size_t i = 0; i < runs.size(); ++i) {
    const int colour = static_cast<int>(i);
    anything = anything || any_finite(points_of(runs[i].record, curve.value));
    add_steps(chart, curve, runs[i], colour, one ? curve.name : runs[i].name, detail.groups);
    if (curve.held_out) {
      add_held_out(chart, curve, runs[i], one ? 1 : colour, one ? "held-out" : runs[i].name + ", held-out",
                   detail.groups);
    }
  }
  if (one) chart.marks = marks_of(runs.front().record);
  // Older versions of the program did not record every quantity.
  if (!anything && !curve.held_out) return "";
  return "<div class=\"card\">" + svg_of(chart) + "</div>\n";
}

// Whether the values need a logarithmic axis, as a gradient norm with spikes does.
bool spans_decades(const std::vector<ReportRun>& runs, const StepValue& value) {
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for (const ReportRun& run : runs) {
    for (const StepRecord& step : run.record.kept.steps) {
      const double x = value(step);
      if (!(x > 0) || !std::isfinite(x)) continue;
      low = std::min(low, x);
      high = std::max(high, x);
    }
  }
  return high > 30 * low;
}

constexpr size_t kStepParts = 5;
const std::array<const char*, kStepParts> kStepPartNames{"data", "compute and communication",
                                                         "waiting for the slowest rank", "optimizer update", "other"};

// Mean milliseconds per phase over the steps [first, last).
std::array<double, kStepParts> step_parts(const std::vector<StepRecord>& steps, size_t first, size_t last) {
  std::array<double, kStepParts> sum{};
  double count = 0;
  for (size_t i = first; i < last; ++i) {
    const StepRecord& s = steps[i];
    if (!std::isfinite(s.step_ms)) continue;
    const auto part = [](double ms) { return std::isfinite(ms) ? ms : 0; };
    const std::array<double, 4> parts{part(s.data_ms), part(s.compute_ms), part(s.agree_ms), part(s.update_ms)};
    for (size_t p = 0; p < parts.size(); ++p) sum[p] += parts[p];
    sum[4] += std::max(0.0, s.step_ms - std::accumulate(parts.begin(), parts.end(), 0.0));
    ++count;
  }
  for (double& x : sum) x = count > 0 ? x / count : 0;
  return sum;
}

}  // namespace

std::string report_curves(const std::vector<ReportRun>& runs, const ReportDetail& detail) {
  const StepValue norm = [](const StepRecord& s) { return s.grad_norm; };
  const bool norm_log = spans_decades(runs, norm);
  const std::vector<Curve> curves{
      {.title = "Loss",
       .unit = "nats per token",
       .name = "training",
       .value = [](const StepRecord& s) { return s.loss; },
       .held_out = [](const PauseRecord& p) { return p.valid_loss; }},
      {.title = "Bits per byte of text",
       .unit = "bits",
       .name = "training",
       .value = [](const StepRecord& s) { return s.bits_per_byte; },
       .held_out = [](const PauseRecord& p) { return p.valid_bits_per_byte; }},
      {.title = "Learning rate",
       .unit = "",
       .name = "lr",
       .value = [](const StepRecord& s) { return s.lr; },
       .min = 0,
       .smooth = false},
      {.title = "Gradient norm before clipping", .unit = "", .name = "norm", .value = norm, .log = norm_log},
      {.title = "Throughput",
       .unit = "tokens/s, all ranks",
       .name = "tokens/s",
       .value = [](const StepRecord& s) { return s.tokens_per_s; },
       .min = 0},
      {.title = "Compute rate",
       .unit = "GEMM GFLOP/s per rank",
       .name = "GFLOP/s",
       .value = [](const StepRecord& s) { return s.gflops; },
       .min = 0},
      {.title = "Model FLOPs utilization (MFU)",
       .unit = "% of the device's peak",
       .name = "MFU",
       .value = [](const StepRecord& s) { return 100 * s.mfu; },
       .min = 0},
      {.title = "Memory",
       .unit = "MiB on rank 0: model, optimizer, activations",
       .name = "MiB",
       .value = [](const StepRecord& s) { return s.memory_bytes / (1 << 20); },
       .min = 0,
       .smooth = false}};
  std::string out = "<div class=\"grid\">\n";
  for (const Curve& curve : curves) out += drawn(curve, runs, detail);
  return out + "<div class=\"card\">" + step_time_chart(runs) + "</div>\n</div>\n";
}

std::string step_time_chart(const std::vector<ReportRun>& runs) {
  BarChart chart;
  chart.title = "Step time by phase";
  chart.value.label = "ms, mean over steps";
  constexpr std::array<int, kStepParts> colours{4, 0, 1, 2, 6};
  for (size_t i = 0; i < kStepParts; ++i) {
    chart.parts.push_back({.name = kStepPartNames[i], .values = {}, .colour = colours[i]});
  }
  const auto add = [&](const std::string& name, const std::vector<StepRecord>& steps, size_t first, size_t last) {
    chart.bars.push_back(name);
    const auto parts = step_parts(steps, first, last);
    for (size_t p = 0; p < parts.size(); ++p) chart.parts[p].values.push_back(parts[p]);
  };
  if (runs.size() > 1) {
    for (const ReportRun& run : runs) add(run.name, run.record.kept.steps, 0, run.record.kept.steps.size());
    return svg_of(chart);
  }
  const std::vector<StepRecord>& steps = runs.front().record.kept.steps;
  const size_t ranges = std::min<size_t>(6, steps.size());
  for (size_t i = 0; i < ranges; ++i) {
    const size_t first = steps.size() * i / ranges, last = steps.size() * (i + 1) / ranges;
    add(str("steps ", steps[first].step, "-", steps[last - 1].step), steps, first, last);
  }
  return svg_of(chart);
}

std::string goodput_chart(const std::vector<ReportRun>& runs) {
  BarChart chart;
  chart.title = "Wall time by activity";
  const auto add = [&](const std::string& name, const SpentSeconds& seconds, double unit) {
    chart.bars.push_back(name);
    for (size_t i = 0; i < kSpents; ++i) chart.parts[i].values.push_back(seconds[i] / unit);
  };
  double longest = 0;
  for (const ReportRun& run : runs) longest = std::max(longest, run.goodput.wall_seconds);
  const double unit = longest > 2 * 3600 ? 3600 : longest > 240 ? 60 : 1;
  chart.value.label = unit == 3600 ? "hours" : unit == 60 ? "minutes" : "seconds";
  // Training has a positive colour, lost time a warning colour.
  constexpr std::array<int, kSpents> colours{2, 1, 4, 3, 5, 7, 6};
  for (size_t i = 0; i < kSpents; ++i) {
    chart.parts.push_back({.name = name_of(static_cast<Spent>(i)), .values = {}, .colour = colours[i]});
  }
  for (const ReportRun& run : runs) add(runs.size() == 1 ? "run" : run.name, run.goodput.seconds, unit);
  if (runs.size() == 1 && runs.front().goodput.attempts.size() > 1) {
    const std::vector<AttemptRecord>& attempts = runs.front().goodput.attempts;
    constexpr size_t kMostBars = 12;
    for (size_t i = attempts.size() > kMostBars ? attempts.size() - kMostBars : 0; i < attempts.size(); ++i) {
      add(str("attempt ", i + 1), attempts[i].seconds, unit);
    }
  }
  return svg_of(chart);
}

}  // namespace tmamba
