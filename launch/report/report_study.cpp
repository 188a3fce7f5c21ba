#include "launch/report/report_study.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>

#include "data/io/fs.h"
#include "launch/cli/format.h"
#include "launch/report/chart.h"
#include "launch/report/html.h"
#include "launch/study/study_summary.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

constexpr int64_t kMostBytes = int64_t{64} << 20;
constexpr int kGrey = 7;  // of lines that are nobody's: limits, diagonals

double number(const json& object, const char* key) {
  return object.at(key).is_null() ? std::nan("") : object.at(key).get<double>();
}
std::string word(const json& object, const char* key) { return object.at(key).get<std::string>(); }

// One curve: a layout at a sequence length. By number of ranks its fastest point.
struct Curve {
  std::string name;
  std::map<int64_t, const json*> points;
};

std::string ranks_word(int64_t ranks) { return str(ranks, ranks == 1 ? " rank" : " ranks"); }

// Sequence lengths that the study tells apart: in weak_sequence studies they grow with the ranks and are no curves.
bool several_lengths(const json& summary) {
  const json& points = summary.at("points");
  return word(summary, "mode") != "weak_sequence" && std::any_of(points.begin(), points.end(), [&](const json& p) {
           return p.at("seq_len") != points.front().at("seq_len");
         });
}

std::string curve_name(const json& summary, const std::string& series, const json& seq_len) {
  return several_lengths(summary) ? str(series, ", T=", seq_len.get<int64_t>()) : series;
}

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

// The same without curves that go through the points of an earlier one, which takes their names along.
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

std::vector<double> rank_counts(const std::vector<Curve>& curves) {
  std::vector<double> counts;
  for (const Curve& curve : curves) {
    for (const auto& [ranks, point] : curve.points) counts.push_back(static_cast<double>(ranks));
  }
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  return counts;
}

// A curve as drawn: the median of `key` with its interval; `member` is the name of the middle value in it.
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

// Processors for ranks on a node, 0 where there is no model.
int64_t slots_of(const json& summary) {
  return summary.contains("model") ? summary.at("model").at("fit").at("slots").get<int64_t>() : 0;
}

// Where ranks share processors, no layout can be better than this.
void add_limit(LineChart& chart, const json& summary, const std::vector<double>& counts, const auto& value) {
  const auto slots = static_cast<double>(slots_of(summary));
  if (counts.empty() || slots == 0) return;
  const bool shared = slots < counts.back();
  ChartSeries limit{
      .name = shared ? str("limit of ", slots, " cores") : "ideal", .points = {}, .colour = kGrey, .dashed = true};
  for (double ranks : counts) limit.points.push_back({ranks, value(ranks, std::min(ranks, slots))});
  chart.series.push_back(std::move(limit));
}

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
      {{"compute_ms", "computing"}, {"exposed_ms", "communication not hidden"}, {"data_ms", "batches"}}};
  BarChart chart{.title = "Where a step goes", .value = {.label = "ms"}, .bars = {}, .parts = {}};
  for (const auto& [key, name] : kParts) chart.parts.push_back({.name = name, .values = {}});
  chart.parts.push_back({.name = "checkpoints, their share", .values = {}});
  std::vector<const json*> drawn;
  for (const Curve& curve : curves) {
    for (const auto& [ranks, point] : curve.points) {
      if (std::find(drawn.begin(), drawn.end(), point) != drawn.end()) continue;  // a base is on every curve
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

// Predicted over measured steps: on the diagonal they agree.
std::string parity_chart(const json& summary) {
  LineChart chart{.title = "Predicted beside measured steps",
                  .x = {.label = "measured, ms", .log = true},
                  .y = {.label = "predicted, ms", .log = true},
                  .series = {}};
  ChartSeries planned{.name = "by the planner, before", .points = {}, .colour = 1, .line = false, .markers = true};
  ChartSeries fitted{.name = "by the fitted model", .points = {}, .colour = 0, .line = false, .markers = true};
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
  LineChart chart{.title = "Efficiency: measured (dots), by the model (dashed)",
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

std::string with_interval(const json& quantity, const char* member, double scale, int digits) {
  return str(fixed(scale * number(quantity, member), digits), " <span class=\"soft\" style=\"white-space:nowrap\">[",
             fixed(scale * number(quantity, "low"), digits), ", ", fixed(scale * number(quantity, "high"), digits),
             "]</span>");
}

std::string part_text(const json& part) { return part.is_null() ? "-" : fixed(number(part, "median"), 2); }

// "8 ranks: tp 2, sp 4", of axes with one rank nothing.
std::string layout_text(const json& p) {
  std::string text;
  for (const char* axis : {"tp", "sp", "dp", "fold"}) {
    if (p.at(axis).get<int>() > 1) text += str(text.empty() ? ": " : ", ", axis, " ", p.at(axis).get<int>());
  }
  return ranks_word(p.at("ranks").get<int64_t>()) + text;
}

std::string points_table(const json& summary) {
  std::vector<std::vector<std::string>> rows;
  for (const json& p : summary.at("points")) {
    const json& b = p.at("breakdown");
    const double mfu = number(p, "mfu");
    rows.push_back(
        {"<span style=\"white-space:nowrap\">" +
             html_escaped(layout_text(p) +
                          (several_lengths(summary) ? str(", T=", p.at("seq_len").get<int64_t>()) : "")) +
             "</span>",
         str(p.at("starts").get<int>()), with_interval(p.at("step_ms"), "median", 1, 1),
         count_text(number(p.at("tokens_per_s"), "median")), with_interval(p.at("efficiency"), "value", 100, 1),
         std::isfinite(mfu) ? fixed(100 * mfu, 1) : "-", part_text(b.at("compute_ms")), part_text(b.at("exposed_ms")),
         part_text(b.at("data_ms")), part_text(b.at("checkpoint_stall_ms")),
         bytes_text(static_cast<int64_t>(number(p, "memory_bytes"))), fixed(number(p.at("predicted"), "step_ms"), 1),
         p.contains("fitted") ? fixed(number(p.at("fitted"), "step_ms"), 1) : "-", fixed(number(p, "load"), 1)});
  }
  return html_table(
      {"layout", "starts", str("step, ms (", least_confidence(summary, "step_ms"), ")"), "tokens/s",
       str("efficiency, % (", least_confidence(summary, "efficiency"), ")"), "MFU, %", "computing, ms", "exposed, ms",
       "batches, ms", "save stall, ms", "memory of a rank", "planned, ms", "fitted, ms", "load before"},
      rows);
}

std::string model_section(const json& summary, const std::vector<Curve>& curves) {
  const json &model = summary.at("model"), &fit = model.at("fit"), &extrapolated = model.at("extrapolation");
  std::vector<std::vector<std::string>> numbers;
  for (const json& n : fit.at("numbers")) {
    numbers.push_back({html_escaped(word(n, "name")), tick_text(number(n, "prior")), tick_text(number(n, "value")),
                       n.at("informed").get<bool>() ? "measured" : "hardly informed"});
  }
  std::string out =
      str("<p>Everything in this part is the cost model's. It was fitted to the points above; its steps "
          "differ from theirs by ",
          fixed(100 * number(fit, "step_error"), 1), " % (root mean square).</p>\n");
  if (!model.at("holdout").is_null()) {
    std::vector<std::vector<std::string>> rows;
    for (const json& p : model.at("holdout").at("points")) {
      rows.push_back({html_escaped(word(p, "id")), fixed(number(p, "measured_step_ms"), 1),
                      fixed(number(p, "model_step_ms"), 1), fixed(100 * number(p, "measured_efficiency"), 1),
                      fixed(100 * number(p, "model_efficiency"), 1)});
    }
    out += str("<h3>Fitted without the runs of ", ranks_word(model.at("holdout").at("ranks").get<int64_t>()),
               ", it says of them</h3>\n",
               html_table({"point", "measured, ms", "model, ms", "measured efficiency, %", "model, %"}, rows));
  }
  std::string assumed;
  for (const json& text : extrapolated.at("assumed"))
    assumed += (assumed.empty() ? "" : "; ") + text.get<std::string>();
  const std::string table = html_table({"rate", "before", "fitted", ""}, numbers);
  if (extrapolated.at("points").empty()) return html_section("The model", out + table);
  const std::string text = str(
      "<p class=\"soft\">", extrapolated.at("ranks_per_node").get<int>(), " ranks a node",
      assumed.empty() ? "" : "; not measured but assumed: " + html_escaped(assumed),
      ". Where more ranks were measured than a node has cores, they shared them; in the extrapolation they do not. "
      "An exchange costs its latency once, however many ranks take part: of thousands this is the best case.</p>\n");
  return html_section("The model", out + "<div class=\"grid\"><div class=\"card\">" +
                                       extrapolation_chart(summary, curves) + text + "</div><div>" + table +
                                       "</div></div>\n");
}

std::string tile(const std::string& value, const std::string& what) {
  return "<div class=\"tile\"><b>" + html_escaped(value) + "</b><span>" + html_escaped(what) + "</span></div>\n";
}

std::string tiles(const json& summary) {
  std::string out;
  const json* best = nullptr;
  size_t starts = 0;
  for (const json& p : summary.at("points")) {
    starts += p.at("starts").get<size_t>();
    if (best == nullptr || number(p.at("tokens_per_s"), "median") > number(best->at("tokens_per_s"), "median"))
      best = &p;
  }
  out += tile(word(summary, "mode"), "scaling");
  out += tile(str(summary.at("points").size(), " of ", summary.at("planned").at("points").get<size_t>()), "points");
  out += tile(str(starts), "starts");
  if (!summary.at("bases").empty()) {
    const json& base = summary.at("bases").front();
    out += tile(fixed(number(base, "step_ms"), 1) + " ms",
                str("a step of the base, ", ranks_word(base.at("ranks").get<int64_t>())));
    out += tile(count_text(number(base, "tokens_per_s")), "tokens/s of the base");
  }
  if (best != nullptr) {
    out += tile(count_text(number(best->at("tokens_per_s"), "median")),
                str("tokens/s at most, ", ranks_word(best->at("ranks").get<int64_t>())));
  }
  return "<div class=\"tiles\">\n" + out + "</div>\n";
}

std::string left_out(const json& summary) {
  std::string list;
  for (const json& f : summary.at("failed")) {
    list += "<li><b>failed</b> " +
            html_escaped(
                str(word(f, "id"), ", start ", f.at("start").get<int64_t>(), ": ", shortened(word(f, "why"), 400))) +
            "</li>\n";
  }
  for (const json& s : summary.at("skipped")) {
    list += "<li>" +
            html_escaped(str(word(s, "series"), " on ", ranks_word(s.at("ranks").get<int64_t>()),
                             ", T=", s.at("seq_len").get<int64_t>(), ": ", shortened(word(s, "why"), 400))) +
            "</li>\n";
  }
  if (summary.contains("model")) {
    for (const json& s : summary.at("model").at("extrapolation").at("skipped")) {
      list += "<li>not extrapolated: " +
              html_escaped(str(word(s, "series"), " on ", ranks_word(s.at("ranks").get<int64_t>()),
                               ", T=", s.at("seq_len").get<int64_t>(), ": ", shortened(word(s, "why"), 400))) +
              "</li>\n";
    }
  }
  return list.empty() ? "" : html_section("Not measured", "<ul>\n" + list + "</ul>\n");
}

std::string method_section(const json& summary) {
  const json& method = summary.at("method");
  std::string list;
  for (const char* key : {"measurement", "interval", "efficiency", "exposed", "mfu", "checkpoint"}) {
    list += "<li><b>" + std::string(key) + "</b>: " + html_escaped(word(method, key)) + "</li>\n";
  }
  const json& peak = summary.at("peak");
  const double flops = number(peak, "flops_per_rank");
  if (flops > 0) {
    list +=
        "<li><b>peak</b>: " + html_escaped(str(fixed(flops / 1e9, 1), " GFLOP/s per rank, ", word(peak, "source"))) +
        "</li>\n";
  }
  return html_section("Method", "<ul>\n" + list + "</ul>\n<details><summary>the study's file</summary><pre>" +
                                    html_escaped(word(summary, "study")) + "</pre></details>\n");
}

std::string study_body(const json& summary) {
  const std::vector<Curve> curves = curves_of(summary);
  if (curves.empty()) return "<p>Nothing has been measured yet.</p>\n" + left_out(summary);
  std::string charts;
  for (const std::string& chart : {efficiency_chart(summary, distinct(curves)), rate_chart(summary, distinct(curves)),
                                   breakdown_chart(curves), parity_chart(summary)}) {
    charts += "<div class=\"card\">" + chart + "</div>\n";
  }
  return tiles(summary) +
         html_section("Measured", "<div class=\"grid\">" + charts + "</div>\n" + points_table(summary)) +
         (summary.contains("model") ? model_section(summary, curves) : "") + left_out(summary) +
         method_section(summary);
}

}  // namespace

bool is_study(const std::string& dir) {
  std::error_code error;
  return fs::exists(fs::path(dir) / "study.json", error) || fs::is_directory(fs::path(dir) / "points", error);
}

json read_study_summary(const std::string& dir) {
  const fs::path file = fs::path(dir) / "study.json";
  std::error_code error;
  if (!fs::exists(file, error)) {
    throw UserError(str(file.string(),
                        " is missing: the study was stopped before its first summary; write it with "
                        "`transmamba scale STUDY.toml --summary`"));
  }
  try {
    json summary = json::parse(read_text(file, kMostBytes));
    if (summary.at("kind") != "scaling study" || summary.at("schema") != 1) {
      throw UserError(str(file.string(), " is of another version of this program"));
    }
    return summary;
  } catch (const json::exception& wrong) {
    throw UserError(str(file.string(), " is damaged (", wrong.what(),
                        "); write it again with `transmamba scale "
                        "STUDY.toml --summary`"));
  }
}

std::string study_page(const std::vector<json>& summaries) {
  TM_CHECK(!summaries.empty(), "a report needs a study");
  const bool one = summaries.size() == 1;
  std::string body;
  try {
    for (const json& summary : summaries) {
      if (!one) body += "<h2>" + html_escaped(word(summary, "name")) + "</h2>\n";
      body += study_body(summary);
    }
    return html_page(one ? word(summaries.front(), "name") : str(summaries.size(), " scaling studies"),
                     "TransMamba scaling study. Solid lines and dots are measured; what a model says is dashed and "
                     "stands apart.",
                     body);
  } catch (const json::exception& wrong) {
    throw UserError(str("a study.json is damaged (", wrong.what(),
                        "); write it again with `transmamba scale STUDY.toml "
                        "--summary`"));
  }
}

}  // namespace tmamba
