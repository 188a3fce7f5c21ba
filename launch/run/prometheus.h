// class PrometheusFile: the newest figures of a run in the text format of Prometheus, for the textfile collector of
// node_exporter. No port is opened: the collector reads the file, which is replaced as a whole.
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
  // `run` names the run in the label of every figure. Throws UserError where the file cannot be written. A
  // failure later is said once, and ends no run.
  PrometheusFile(const std::filesystem::path& file, const std::string& run);

  // A line of metrics.jsonl; the file is written at most every kSeconds.
  void metric(const nlohmann::json& line);
  // An event at `time`, seconds since 1970; the file is written at once.
  void event(const std::string& kind, double time, const nlohmann::json& details);

  static constexpr double kSeconds = 5;

 private:
  using Clock = std::chrono::steady_clock;
  void write();

  std::filesystem::path file_;
  std::string label_;                      // {run="..."}
  std::map<std::string, double> figures_;  // by name
  bool failing_ = false;
  Clock::time_point written_;
};

}  // namespace tmamba
