#include "launch/report/report_study.h"

#include <cmath>
#include <filesystem>

#include "data/io/fs.h"
#include "launch/cli/format.h"
#include "launch/report/chart.h"
#include "launch/report/html.h"
#include "launch/report/report_study_charts.h"
#include "launch/study/study_summary.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

using namespace study_charts;

constexpr int64_t kMostBytes = int64_t{64} << 20;  // limit of a study.json

std::string with_interval(const json& quantity, const char* member, double scale, int digits) {
  return str(fixed(scale * number(quantity, member), digits), " <span class=\"soft\" style=\"white-space:nowrap\">[",
             fixed(scale * number(quantity, "low"), digits), ", ", fixed(scale * number(quantity, "high"), digits),
             "]</span>");
}

std::string part_text(const json& part) { return part.is_null() ? "-" : fixed(number(part, "median"), 2); }

// "8 ranks: tp 2, sp 4"; axes of size 1 are left out.
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
  return html_table({"layout", "repeats", str("step, ms (", least_confidence(summary, "step_ms"), ")"), "tokens/s",
                     str("efficiency, % (", least_confidence(summary, "efficiency"), ")"), "MFU, %", "compute, ms",
                     "exposed communication, ms", "data loading, ms", "checkpoint stall, ms", "memory per rank",
                     "planned, ms", "fitted, ms", "load average before"},
                    rows);
}

std::string model_section(const json& summary, const std::vector<Curve>& curves) {
  const json &model = summary.at("model"), &fit = model.at("fit"), &extrapolated = model.at("extrapolation");
  std::vector<std::vector<std::string>> numbers;
  for (const json& n : fit.at("numbers")) {
    numbers.push_back({html_escaped(word(n, "name")), tick_text(number(n, "prior")), tick_text(number(n, "value")),
                       n.at("informed").get<bool>() ? "fitted" : "hardly constrained by the points"});
  }
  std::string out =
      str("<p>Everything in this section is predicted by the cost model, which was fitted to the points above. Its "
          "step times differ from the measured ones by ",
          fixed(100 * number(fit, "step_error"), 1), " % (root mean square).</p>\n");
  if (!model.at("holdout").is_null()) {
    std::vector<std::vector<std::string>> rows;
    for (const json& p : model.at("holdout").at("points")) {
      rows.push_back({html_escaped(word(p, "id")), fixed(number(p, "measured_step_ms"), 1),
                      fixed(number(p, "model_step_ms"), 1), fixed(100 * number(p, "measured_efficiency"), 1),
                      fixed(100 * number(p, "model_efficiency"), 1)});
    }
    out += str("<h3>Holdout: predictions for ", ranks_word(model.at("holdout").at("ranks").get<int64_t>()),
               " by the model fitted without them</h3>\n",
               html_table({"point", "measured, ms", "model, ms", "measured efficiency, %", "model, %"}, rows));
  }
  std::string assumed;
  for (const json& text : extrapolated.at("assumed"))
    assumed += (assumed.empty() ? "" : "; ") + text.get<std::string>();
  const std::string table = html_table({"rate", "before the fit", "fitted", ""}, numbers);
  if (extrapolated.at("points").empty()) return html_section("The model", out + table);
  const std::string text = str(
      "<p class=\"soft\">", extrapolated.at("ranks_per_node").get<int>(), " ranks per node",
      assumed.empty() ? "" : "; assumed, not measured: " + html_escaped(assumed),
      ". The extrapolation never runs more ranks on a node than it has cores, even if the measurements did. The model "
      "charges the latency of an exchange once, for any number of ranks: for thousands of ranks this is a lower "
      "bound.</p>\n");
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
  size_t repeats = 0;
  for (const json& p : summary.at("points")) {
    repeats += p.at("starts").get<size_t>();
    if (best == nullptr || number(p.at("tokens_per_s"), "median") > number(best->at("tokens_per_s"), "median"))
      best = &p;
  }
  out += tile(word(summary, "mode"), "scaling");
  out += tile(str(summary.at("points").size(), " of ", summary.at("planned").at("points").get<size_t>()), "points");
  out += tile(str(repeats), "repeats");
  if (!summary.at("bases").empty()) {
    const json& base = summary.at("bases").front();
    out += tile(fixed(number(base, "step_ms"), 1) + " ms",
                str("per step of the base, ", ranks_word(base.at("ranks").get<int64_t>())));
    out += tile(count_text(number(base, "tokens_per_s")), "tokens/s of the base");
  }
  if (best != nullptr) {
    out += tile(count_text(number(best->at("tokens_per_s"), "median")),
                str("highest tokens/s, ", ranks_word(best->at("ranks").get<int64_t>())));
  }
  return "<div class=\"tiles\">\n" + out + "</div>\n";
}

std::string left_out(const json& summary) {
  std::string list;
  for (const json& f : summary.at("failed")) {
    list += "<li><b>failed</b> " +
            html_escaped(
                str(word(f, "id"), ", repeat ", f.at("start").get<int64_t>(), ": ", shortened(word(f, "why"), 400))) +
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
  return html_section("Method", "<ul>\n" + list + "</ul>\n<details><summary>study file</summary><pre>" +
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
                        " is missing: the study was stopped before it wrote a summary; write it with "
                        "`transmamba scale STUDY.toml --summary`"));
  }
  try {
    json summary = json::parse(read_text(file, kMostBytes));
    if (summary.at("kind") != "scaling study" || summary.at("schema") != 1) {
      throw UserError(str(file.string(),
                          " was written by another version of this program; write it again with `transmamba scale "
                          "STUDY.toml --summary`"));
    }
    return summary;
  } catch (const json::exception& wrong) {
    throw UserError(str(file.string(), " is damaged (", wrong.what(),
                        "); write it again with `transmamba scale "
                        "STUDY.toml --summary`"));
  }
}

std::string study_page(const std::vector<json>& summaries) {
  TM_CHECK(!summaries.empty(), "study_page() needs at least one study");
  const bool one = summaries.size() == 1;
  std::string body;
  try {
    for (const json& summary : summaries) {
      if (!one) body += "<h2>" + html_escaped(word(summary, "name")) + "</h2>\n";
      body += study_body(summary);
    }
    return html_page(one ? word(summaries.front(), "name") : str(summaries.size(), " scaling studies"),
                     "TransMamba scaling study. Solid lines and dots are measured; dashed lines are predicted by a "
                     "model.",
                     body);
  } catch (const json::exception& wrong) {
    throw UserError(str("a study.json is damaged (", wrong.what(),
                        "); write it again with `transmamba scale STUDY.toml "
                        "--summary`"));
  }
}

}  // namespace tmamba
