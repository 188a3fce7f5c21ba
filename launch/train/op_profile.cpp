#include "launch/train/op_profile.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace tmamba {

using nlohmann::json;

json op_rows(const TimedOps& timed, int64_t steps) {
  json rows = json::array();
  for (const auto& [name, t] : timed.timings()) {
    rows.push_back({{"op", name},
                    {"calls", t.calls / steps},
                    {"ms", 1e3 * t.seconds / static_cast<double>(steps)},
                    {"gflops", t.flops / t.seconds / 1e9},
                    {"gb_per_s", t.bytes / t.seconds / 1e9}});
  }
  std::sort(rows.begin(), rows.end(), [](const json& a, const json& b) { return a["ms"] > b["ms"]; });
  return rows;
}

std::string op_table(const json& rows) {
  const bool roof = !rows.empty() && rows.front().contains("fraction_of_roof");
  char text[128];
  std::snprintf(text, sizeof text, "%-24s %6s %10s %10s %9s%s\n", "op", "calls", "ms/step", "GFLOP/s", "GB/s",
                roof ? "    roof" : "");
  std::string table = text;
  for (const json& row : rows) {
    std::snprintf(text, sizeof text, "%-24s %6lld %10.2f %10.1f %9.1f", row["op"].get<std::string>().c_str(),
                  row["calls"].get<long long>(), row["ms"].get<double>(), row["gflops"].get<double>(),
                  row["gb_per_s"].get<double>());
    table += text;
    if (roof) {
      std::snprintf(text, sizeof text, " %6.0f%%", 100 * row["fraction_of_roof"].get<double>());
      table += text;
    }
    table += '\n';
  }
  return table;
}

}  // namespace tmamba
