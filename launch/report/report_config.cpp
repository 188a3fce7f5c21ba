// What the configurations of runs say, and where they differ.
#include <algorithm>
#include <map>
#include <set>

#include "launch/config/config.h"
#include "launch/report/html.h"
#include "launch/report/report.h"

namespace tmamba {

namespace {

// The values of config.toml by key; empty where it cannot be read.
std::map<std::string, std::string> values_of(const RunRecord& record) {
  std::map<std::string, std::string> values;
  try {
    for (KeyValue& key : config_values(parse_config(record.config, "config.toml", {}))) {
      values[key.name] = std::move(key.text);
    }
  } catch (const Error&) {
    values.clear();  // of another version of the program, or cut off; its text is shown below
  }
  return values;
}

}  // namespace

std::string differences_section(const std::vector<ReportRun>& runs) {
  if (runs.size() == 1) return "";
  std::vector<std::string> header{"key"};
  std::vector<std::map<std::string, std::string>> values;
  std::set<std::string> keys;
  for (const ReportRun& run : runs) {
    header.push_back(html_escaped(run.name));
    values.push_back(values_of(run.record));
    for (const auto& [key, value] : values.back()) keys.insert(key);
  }
  std::vector<std::vector<std::string>> rows;
  std::string unread;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (values[i].empty()) unread += "<p>" + html_escaped(runs[i].name) + ": config.toml cannot be compared.</p>\n";
  }
  for (const std::string& key : keys) {
    std::vector<std::string> row{html_escaped(key)};
    std::set<std::string> different;
    for (const auto& of_run : values) {
      const auto found = of_run.find(key);
      row.push_back(found == of_run.end() ? "-" : html_escaped(shortened(found->second, 200)));
      if (!of_run.empty()) different.insert(found == of_run.end() ? "" : found->second);
    }
    if (different.size() > 1 && key != "run.dir") rows.push_back(std::move(row));
  }
  const std::string body =
      rows.empty() ? "<p>The configurations are the same but for run.dir.</p>\n" : html_table(header, rows);
  return html_section("Differences of the configurations", body + unread);
}

std::string config_section(const std::vector<ReportRun>& runs, size_t bytes) {
  std::string out;
  for (const ReportRun& run : runs) {
    if (run.record.config.empty()) continue;
    out += "<details><summary>" + html_escaped(run.name + ": config.toml, each value with its origin") +
           "</summary><pre>" + html_escaped(shortened(run.record.config, std::max<size_t>(500, bytes / runs.size()))) +
           "</pre></details>\n";
  }
  return out.empty() ? "" : html_section("Configuration", out);
}

}  // namespace tmamba
