#include "launch/report/report_study_charts.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "launch/report/chart.h"
#include "launch/study/study_summary.h"

namespace tmamba::study_charts {

using nlohmann::json;

double number(const json& object, const char* key) {
  return object.at(key).is_null() ? std::nan("") : object.at(key).get<double>();
}

std::string word(const json& object, const char* key) { return object.at(key).get<std::string>(); }

std::string ranks_word(int64_t ranks) { return str(ranks, ranks == 1 ? " rank" : " ranks"); }

bool several_lengths(const json& summary) {
  const json& points = summary.at("points");
  return word(summary, "mode") != "weak_sequence" && std::any_of(points.begin(), points.end(), [&](const json& p) {
           return p.at("seq_len") != points.front().at("seq_len");
         });
}

namespace {

constexpr int kGrey = 7;  // colour of limits and diagonals

std::string curve_name(const json& summary, const std::string& series, const json& seq_len) {
  return several_lengths(summary) ? str(series, ", T=", seq_len.get<int64_t>()) : series;
}

}  // namespace

std::vector<Curve> curves_of(const json& summary) {
  std::vector<Curve> curves;
  for (const json& p : summary.at("points")) {
    for (const json& series : p.at("series")) {
      const std::string name = curve_name(summary, series.get<std::string>(), p.at("seq_len"));
      auto found = std::find_if(curves.begin(), curves.end(), [&](const Curve& c) { return c.name == name; });
      if (found == curves.end()) found = curves.insert(curves.end(), {.name = name, .points = {}});
      const json*& at = found->points[p.at("ranks").get<int64_t>()];
      if (at == nullptr || number(p.at("tokens_per_s"), "median") > number(at->at("tokens_per_s"), "median")) at = &p;
    }
  }
  return curves;
}

std::vector<Curve> distinct(const std::vector<Curve>& curves) {
  std::vector<Curve> kept;
  for (const Curve& curve : curves) {
    const auto same = std::find_if(kept.begin(), kept.end(), [&](const Curve& c) { return c.points == curve.points; });
    if (same == kept.end()) {
      kept.push_back(curve);
    } else {
      same->name += " = " + curve.name;
    }
  }
  return kept;
}

namespace {

std::vector<double> rank_counts(const std::vector<Curve>& curves) {
  std::vector<double> counts;
  for (const Curve& curve : curves) {
    for (const auto& [ranks, point] : curve.points) counts.push_back(static_cast<double>(ranks));
  }
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  return counts;
}

// The chart series of a curve: the quantity `key` with its interval; `member` names the central value.
ChartSeries series_of(const Curve& curve, int colour, const char* key, const char* member, double scale) {
  ChartSeries series{.name = curve.name, .points = {}, .colour = colour, .markers = true};
  for (const auto& [ranks, point] : curve.points) {
    const json& of = point->at(key);
    const auto x = static_cast<double>(ranks);
    series.points.push_back({x, scale * number(of, member)});
    series.band.push_back({x, scale * number(of, "low"), scale * number(of, "high")});
  }
  return series;
}

// Ranks that a node has processors for; 0 if there is no model.
int64_t slots_of(const json& summary) {
  return summary.contains("model") ? summary.at("model").at("fit").at("slots").get<int64_t>() : 0;
}

// Adds the upper bound: linear scaling up to the number of processors, constant beyond.
void add_limit(LineChart& chart, const json& summary, const std::vector<double>& counts, const auto& value) {
  const auto slots = static_cast<double>(slots_of(summary));
  if (counts.empty() || slots == 0) return;
  const bool shared = slots < counts.back();
  ChartSeries limit{
      .name = shared ? str("limit of ", slots, " cores") : "ideal", .points = {}, .colour = kGrey, .dashed = true};
  for (double ranks : counts) limit.points.push_back({ranks, value(ranks, std::min(ranks, slots))});
  chart.series.push_back(std::move(limit));
}

}  // namespace

std::string efficiency_chart(const json& summary, const std::vector<Curve>& curves) {
  const std::vector<double> counts = rank_counts(curves);
  LineChart chart{.title = str("Efficiency per rank, with intervals (", least_confidence(summary, "efficiency"), ")"),
                  .x = {.label = "ranks", .log = true, .ticks = counts},
                  .y = {.label = "% of the base", .min = 0},
                  .series = {}};
  for (size_t i = 0; i < curves.size(); ++i) {
    chart.series.push_back(series_of(curves[i], static_cast<int>(i), "efficiency", "value", 100));
  }
  add_limit(chart, summary, counts, [&](double ranks, double busy) { return 100 * busy / ranks * counts.front(); });
  return svg_of(chart);
}

std::string rate_chart(const json& summary, const std::vector<Curve>& curves) {
  const std::vector<double> counts = rank_counts(curves);
  LineChart chart{.title = str("Tokens per second, with intervals (", least_confidence(summary, "tokens_per_s"), ")"),
                  .x = {.label = "ranks", .log = true, .ticks = counts},
                  .y = {.label = "tokens/s", .log = true},
                  .series = {}};
  for (size_t i = 0; i < curves.size(); ++i) {
    chart.series.push_back(series_of(curves[i], static_cast<int>(i), "tokens_per_s", "median", 1));
  }
  const double base = summary.at("bases").empty() ? 0 : number(summary.at("bases").front(), "tokens_per_s");
  if (!several_lengths(summary) && word(summary, "mode") != "weak_sequence") {
    add_limit(chart, summary, counts, [&](double, double busy) { return base * busy / counts.front(); });
  }
  return svg_of(chart);
}

std::string breakdown_chart(const std::vector<Curve>& curves) {
  constexpr std::array<std::pair<const char*, const char*>, 3> kParts{
      {{"compute_ms", "compute"}, {"exposed_ms", "exposed communication"}, {"data_ms", "data loading"}}};
  BarChart chart{.title = "Step time breakdown", .value = {.label = "ms"}, .bars = {}, .parts = {}};
  for (const auto& [key, name] : kParts) chart.parts.push_back({.name = name, .values = {}});
  chart.parts.push_back({.name = "checkpoints, per step", .values = {}});
  std::vector<const json*> drawn;
  for (const Curve& curve : curves) {
    for (const auto& [ranks, point] : curve.points) {
      if (std::find(drawn.begin(), drawn.end(), point) != drawn.end()) continue;  // the base is a point of every curve
      drawn.push_back(point);
      chart.bars.push_back(ranks == 1 ? std::string("1 rank") : str(ranks, " ", curve.name));
      const json& breakdown = point->at("breakdown");
      for (size_t i = 0; i < kParts.size(); ++i) {
        const json& part = breakdown.at(kParts[i].first);
        chart.parts[i].values.push_back(part.is_null() ? 0 : std::max(0.0, number(part, "median")));
      }
      chart.parts.back().values.push_back(number(breakdown, "checkpoint_ms_per_step"));
    }
  }
  return svg_of(chart);
}

std::string parity_chart(const json& summary) {
  LineChart chart{.title = "Predicted against measured step times",
                  .x = {.label = "measured, ms", .log = true},
                  .y = {.label = "predicted, ms", .log = true},
                  .series = {}};
  ChartSeries planned{.name = "planner, before the study", .points = {}, .colour = 1, .line = false, .markers = true};
  ChartSeries fitted{.name = "fitted model", .points = {}, .colour = 0, .line = false, .markers = true};
  double low = INFINITY, high = 0;
  for (const json& p : summary.at("points")) {
    const double measured = number(p.at("step_ms"), "median"), plan = number(p.at("predicted"), "step_ms");
    planned.points.push_back({measured, plan});
    if (p.contains("fitted")) fitted.points.push_back({measured, number(p.at("fitted"), "step_ms")});
    low = std::min({low, measured, plan}), high = std::max({high, measured, plan});
  }
  for (ChartSeries* series : {&planned, &fitted}) {
    std::sort(series->points.begin(), series->points.end(),
              [](const ChartPoint& a, const ChartPoint& b) { return a.x < b.x; });
    chart.series.push_back(std::move(*series));
  }
  chart.series.push_back({.name = "equal", .points = {{low, low}, {high, high}}, .colour = kGrey, .dashed = true});
  return svg_of(chart);
}

std::string extrapolation_chart(const json& summary, const std::vector<Curve>& curves) {
  LineChart chart{.title = "Efficiency: measured (dots), predicted by the model (dashed)",
                  .x = {.label = "ranks", .log = true},
                  .y = {.label = "% of the base", .min = 0},
                  .series = {}};
  double most = 1;
  for (size_t i = 0; i < curves.size(); ++i) {
    ChartSeries measured = series_of(curves[i], static_cast<int>(i), "efficiency", "value", 100);
    measured.band.clear(), measured.line = false;
    for (const ChartPoint& p : measured.points) most = std::max(most, p.x);
    chart.series.push_back(std::move(measured));
  }
  for (size_t i = 0; i < curves.size(); ++i) {
    ChartSeries model{.name = curves[i].name + ", model", .points = {}, .colour = static_cast<int>(i), .dashed = true};
    for (const json& p : summary.at("model").at("extrapolation").at("points")) {
      if (curve_name(summary, word(p, "series"), p.at("seq_len")) != curves[i].name) continue;
      model.points.push_back({number(p, "ranks"), 100 * number(p, "efficiency")});
    }
    if (!model.points.empty()) chart.series.push_back(std::move(model));
  }
  chart.marks.push_back({most, "measured up to here"});
  return svg_of(chart);
}

}  // namespace tmamba::study_charts
