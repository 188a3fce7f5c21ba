// class PrometheusFile: the latest metrics of a run in Prometheus' text format, for the textfile collector of
// node_exporter. No port is opened: the collector reads the file, which is replaced atomically.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace tmamba {

class PrometheusFile {
 public:
  // `run` is the label of every metric. Throws UserError where the file cannot be written. A later failure is printed
  // once and does not end the run.
  PrometheusFile(const std::filesystem::path& file, const std::string& run);

  // Takes a line of metrics.jsonl; writes the file at most every kSeconds.
  void metric(const nlohmann::json& line);
  // Takes an event at `time`, seconds since 1970; writes the file at once.
  void event(const std::string& kind, double time, const nlohmann::json& details);

  static constexpr double kSeconds = 5;

 private:
  using Clock = std::chrono::steady_clock;
  void write();

  std::filesystem::path file_;
  std::string label_;                     // {run="..."}
  std::map<std::string, double> values_;  // by name of the metric
  bool failing_ = false;
  Clock::time_point written_;
};

}  // namespace tmamba
