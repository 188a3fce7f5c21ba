// The folder of a run: config.toml (effective, with origins), plan.json, metrics.jsonl (one object a step),
// events.jsonl, samples.txt, checkpoints/. Written by rank 0 alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launch/line_log.h"

namespace tmamba {

class RunFolder {
 public:
  // Creates the folder where it is missing and opens the logs for appending. Metrics of steps after `resumed_step`,
  // left by a run that stopped after its last checkpoint, are dropped: each step stands in metrics.jsonl once. With
  // write = false (every rank but 0) nothing is touched and every write is ignored. A line that cannot be logged later
  // is lost, and standard error says so; what else cannot be written throws.
  RunFolder(const std::filesystem::path& dir, int64_t resumed_step, bool write);

  const std::filesystem::path& dir() const { return dir_; }
  std::filesystem::path checkpoints() const { return dir_ / "checkpoints"; }

  void write_config(const std::string& toml);
  // plan.json; the file is there whole or as it was.
  void write_plan(const std::string& json);
  void metric(const nlohmann::json& line);
  void event(const std::string& kind, const nlohmann::json& details);
  void sample(int64_t step, const std::string& text);
  // Drops the metrics of steps after `step`: the run goes on from there.
  void rewind(int64_t step);
  bool has_summary() const { return std::filesystem::exists(dir_ / "summary.json"); }
  // Throws UserError where the run was not finished.
  nlohmann::json read_summary() const;
  void write_summary(const nlohmann::json& summary);

 private:
  std::filesystem::path dir_;
  bool write_;
  LineLog metrics_, events_, samples_;
};

}  // namespace tmamba
