// Formats a study's summary as CSV and as text.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "launch/cli/format.h"
#include "launch/study/study_summary.h"

namespace tmamba {

namespace {

using nlohmann::json;

// Quotes as RFC 4180 requires; a list becomes "a; b".
std::string csv_field(const json& value) {
  if (value.is_null()) return "";
  std::string text;
  if (value.is_array()) {
    for (const json& entry : value) text += (text.empty() ? "" : "; ") + entry.get<std::string>();
  } else {
    text = value.is_string() ? value.get<std::string>() : value.dump();
  }
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string csv_line(const std::vector<json>& fields) {
  std::string line;
  for (size_t i = 0; i < fields.size(); ++i) line += (i > 0 ? "," : "") + csv_field(fields[i]);
  return line + "\n";
}

struct CsvColumn {
  const char* name;
  const char* path;  // JSON pointer into a point of the summary
};

constexpr auto kPointColumns = std::to_array<CsvColumn>({
    {"id", "/id"},
    {"series", "/series"},
    {"ranks", "/ranks"},
    {"hosts", "/hosts"},
    {"seq_len", "/seq_len"},
    {"batch", "/batch"},
    {"micro_batches", "/micro_batches"},
    {"tp", "/tp"},
    {"sp", "/sp"},
    {"dp", "/dp"},
    {"fold", "/fold"},
    {"transport", "/transport"},
    {"starts", "/starts"},
    {"step_ms_median", "/step_ms/median"},
    {"step_ms_low", "/step_ms/low"},
    {"step_ms_high", "/step_ms/high"},
    {"confidence", "/step_ms/confidence"},
    {"tokens_per_s_median", "/tokens_per_s/median"},
    {"tokens_per_s_low", "/tokens_per_s/low"},
    {"tokens_per_s_high", "/tokens_per_s/high"},
    {"efficiency", "/efficiency/value"},
    {"efficiency_low", "/efficiency/low"},
    {"efficiency_high", "/efficiency/high"},
    {"base", "/base"},
    {"mfu", "/mfu"},
    {"compute_ms", "/breakdown/compute_ms/median"},
    {"exposed_ms", "/breakdown/exposed_ms/median"},
    {"data_ms", "/breakdown/data_ms/median"},
    {"checkpoint_stall_ms", "/breakdown/checkpoint_stall_ms/median"},
    {"checkpoint_ms", "/breakdown/checkpoint_ms/median"},
    {"checkpoint_ms_per_step", "/breakdown/checkpoint_ms_per_step"},
    {"memory_bytes", "/memory_bytes"},
    {"checkpoint_bytes", "/checkpoint_bytes"},
    {"load", "/load"},
    {"predicted_step_ms", "/predicted/step_ms"},
    {"predicted_exposed_ms", "/predicted/exposed_ms"},
    {"predicted_memory_bytes", "/predicted/memory_bytes"},
    {"fitted_model_step_ms", "/fitted/step_ms"},
    {"fitted_model_exposed_ms", "/fitted/exposed_ms"},
});

// The value at a path, null if the object that should hold it is null (a part that was not measured).
json value_at(const json& point, const char* path) {
  const json::json_pointer pointer(path);
  return point.at(pointer.parent_pointer()).is_null() ? json() : point.at(pointer);
}

std::string row(const std::array<std::string, 9>& cells) {
  std::array<char, 256> line{};
  std::snprintf(line.data(), line.size(), "%-38s %7s %10s %22s %10s %20s %9s %9s %9s\n", cells[0].c_str(),
                cells[1].c_str(), cells[2].c_str(), cells[3].c_str(), cells[4].c_str(), cells[5].c_str(),
                cells[6].c_str(), cells[7].c_str(), cells[8].c_str());
  return line.data();
}

std::string between(const json& interval, double scale, int digits) {
  return str("[", fixed(scale * interval.at("low").get<double>(), digits), ", ",
             fixed(scale * interval.at("high").get<double>(), digits), "]");
}

std::string point_row(const json& p) {
  const json &step = p.at("step_ms"), &efficiency = p.at("efficiency");
  const double exposed = p.at("breakdown").at("exposed_ms").at("median");
  return row({p.at("id").get<std::string>(), str(p.at("starts").get<int>()), fixed(step.at("median").get<double>(), 1),
              between(step, 1, 1), count_text(p.at("tokens_per_s").at("median").get<double>()),
              str(fixed(100 * efficiency.at("value").get<double>(), 1), " ", between(efficiency, 100, 1)),
              fixed(exposed, 1), fixed(p.at("predicted").at("step_ms").get<double>(), 1),
              fixed(p.at("fitted").at("step_ms").get<double>(), 1)});
}

std::string holdout_text(const json& holdout) {
  if (holdout.is_null()) return "";
  std::string text = str("Holdout: predictions for ", holdout.at("ranks").get<int64_t>(),
                         " ranks by the model fitted without them:\n");
  for (const json& p : holdout.at("points")) {
    text += str("  ", p.at("id").get<std::string>(), ": predicted step ", fixed(p.at("model_step_ms").get<double>(), 1),
                " ms, measured ", fixed(p.at("measured_step_ms").get<double>(), 1), "; efficiency ",
                fixed(100 * p.at("model_efficiency").get<double>(), 1), " %, measured ",
                fixed(100 * p.at("measured_efficiency").get<double>(), 1), " %\n");
  }
  return text;
}

std::string model_text(const json& model) {
  const json& fit = model.at("fit");
  std::string text =
      str("\nCost model (predictions, not measurements), fitted to the points above: ",
          fixed(100 * fit.at("step_error").get<double>(), 1), " % root mean square error of the step times\n");
  for (const json& number : fit.at("numbers")) {
    text += str("  ", number.at("name").get<std::string>(), " ", scientific(number.at("value").get<double>()),
                " (before the fit ", scientific(number.at("prior").get<double>()),
                number.at("informed").get<bool>() ? ")\n" : "; hardly constrained by the points)\n");
  }
  text += holdout_text(model.at("holdout"));
  const json& e = model.at("extrapolation");
  for (const json& s : e.at("skipped")) {
    text +=
        str("skipped in the extrapolation: ", s.at("series").get<std::string>(), " on ", s.at("ranks").get<int64_t>(),
            " ranks, T=", s.at("seq_len").get<int64_t>(), ": ", s.at("why").get<std::string>(), "\n");
  }
  if (e.at("points").empty()) return text;
  text += str("Extrapolated by the model, ", e.at("ranks_per_node").get<int>(), " ranks per node");
  for (const json& assumed : e.at("assumed")) text += ", assuming " + assumed.get<std::string>();
  text += "\n";
  for (const json& p : e.at("points")) {
    text += str("  ", p.at("series").get<std::string>(), " T=", p.at("seq_len").get<int64_t>(), " on ",
                p.at("ranks").get<int64_t>(), " ranks (tp ", p.at("tp").get<int>(), ", sp ", p.at("sp").get<int>(),
                ", dp ", p.at("dp").get<int>(), "): ", fixed(p.at("step_ms").get<double>(), 1), " ms, ",
                count_text(p.at("tokens_per_s").get<double>()), " tokens/s, efficiency ",
                fixed(100 * p.at("efficiency").get<double>(), 1), " %\n");
  }
  return text;
}

}  // namespace

std::string least_confidence(const json& summary, const char* quantity) {
  double least = 1;
  for (const json& p : summary.at("points")) least = std::min(least, p.at(quantity).at("confidence").get<double>());
  return str(std::floor(100 * least + 1e-6), " %");
}

std::string study_csv(const json& summary) {
  std::vector<json> fields{json("mode")};
  for (const CsvColumn& column : kPointColumns) fields.emplace_back(column.name);
  std::string csv = csv_line(fields);
  for (const json& p : summary.at("points")) {
    fields.assign(1, summary.at("mode"));
    for (const CsvColumn& column : kPointColumns) fields.push_back(value_at(p, column.path));
    csv += csv_line(fields);
  }
  return csv;
}

std::string extrapolation_csv(const json& summary) {
  std::string csv = csv_line({"source", "mode", "series", "ranks", "seq_len", "tp", "sp", "dp", "fold", "step_ms",
                              "tokens_per_s", "efficiency", "exposed_ms", "mfu", "memory_bytes"});
  if (!summary.contains("model")) return csv;
  for (const json& p : summary.at("model").at("extrapolation").at("points")) {
    csv += csv_line({"fitted model, not measured", summary.at("mode"), p.at("series"), p.at("ranks"), p.at("seq_len"),
                     p.at("tp"), p.at("sp"), p.at("dp"), p.at("fold"), p.at("step_ms"), p.at("tokens_per_s"),
                     p.at("efficiency"), p.at("exposed_ms"), p.at("mfu"), p.at("memory_bytes")});
  }
  return csv;
}

std::string study_text(const json& summary) {
  std::string text = str(summary.at("name").get<std::string>(), " (", summary.at("mode").get<std::string>(),
                         " scaling): ", summary.at("points").size(), " of ",
                         summary.at("planned").at("points").get<int>(), " points measured\n");
  for (const json& base : summary.at("bases")) {
    text += str("base: ", base.at("id").get<std::string>(), ", ", fixed(base.at("step_ms").get<double>(), 1), " ms, ",
                count_text(base.at("tokens_per_s").get<double>()), " tokens/s\n");
  }
  text += row({"point", "repeats", "step ms", str("interval (", least_confidence(summary, "step_ms"), ")"), "tokens/s",
               str("efficiency % (", least_confidence(summary, "efficiency"), ")"), "exposed", "planned", "fitted"});
  for (const json& point : summary.at("points")) text += point_row(point);
  for (const json& s : summary.at("skipped")) {
    text += str("skipped: ", s.at("series").get<std::string>(), " on ", s.at("ranks").get<int64_t>(),
                " ranks, T=", s.at("seq_len").get<int64_t>(), ": ", s.at("why").get<std::string>(), "\n");
  }
  for (const json& f : summary.at("failed")) {
    text += str("failed: ", f.at("id").get<std::string>(), ", repeat ", f.at("start").get<int64_t>(), ": ",
                f.at("why").get<std::string>(), "\n");
  }
  if (summary.contains("model")) text += model_text(summary.at("model"));
  return text;
}

}  // namespace tmamba
