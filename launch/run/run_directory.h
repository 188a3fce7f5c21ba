// The folder of a run: config.toml (effective, with origins), plan.json, metrics.jsonl (one object a step, and one an
// evaluation or sample), lost.jsonl (such lines of steps that were done again), events.jsonl, samples.txt,
// goodput.json, tensorboard/, checkpoints/. Written by rank 0 alone. launch/run/run_record.h reads it back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launch/cli/line_log.h"
#include "launch/run/prometheus.h"
#include "launch/run/tensorboard.h"

namespace tmamba {

// What of metrics.jsonl was put away.
struct MovedLines {
  int64_t steps = 0;    // moved to lost.jsonl
  int64_t damaged = 0;  // cut short or no JSON: gone
};

// Where else the metrics go.
struct MetricSinks {
  bool tensorboard = false;  // event files in tensorboard/
  std::string prometheus;    // PrometheusFile; empty: none
};

class RunDirectory {
 public:
  // Throws UserError where `dir` is there but is no folder, or none that can be written in.
  static void require_usable(const std::filesystem::path& dir);

  // Creates the folder where it is missing and opens the logs for appending. Metrics of steps after `resumed_step`,
  // left by a run that stopped after its last checkpoint, go to lost.jsonl: each step stands in metrics.jsonl once.
  // With write = false (every rank but 0) nothing is touched and every write is ignored. A line that cannot be logged
  // later is lost, and standard error says so; what else cannot be written throws.
  RunDirectory(const std::filesystem::path& dir, int64_t resumed_step, bool write, const MetricSinks& sinks = {});

  const std::filesystem::path& dir() const { return dir_; }
  std::filesystem::path checkpoints() const { return dir_ / "checkpoints"; }

  void write_config(const std::string& toml);
  // plan.json; the file is there whole or as it was.
  void write_plan(const std::string& json);
  // Both add the time: "time", in metrics as seconds since 1970, in events in UTC.
  void metric(nlohmann::json line);
  // A start of the program has come so far that it can train: says how long that took, and what it found of steps that
  // must be done again.
  void started(bool resumed, int64_t step, int ranks);
  void event(const std::string& kind, const nlohmann::json& details);
  // The same before the logs of `dir` are open. What cannot be written is lost; a folder is not made.
  static void append_event(const std::filesystem::path& dir, const std::string& kind, const nlohmann::json& details);
  void sample(int64_t step, const std::string& text);
  // Whether the folder, or a log in it, was removed or moved away since it was opened.
  bool lost() const;
  // Then: makes it anew as far as it is missing, with logs that begin at `step` and an event that says so. What was
  // logged before is gone. False where it cannot be made now, which standard error says once.
  bool make_anew(int64_t step, int ranks);
  // One line on where the run's time went; never an error.
  std::string time_text() const;
  // goodput.json: where the run's time went so far (launch/run/goodput.h).
  void write_goodput();
  // Metrics of steps after `step` go to lost.jsonl: the run goes on from there.
  void rewind(int64_t step);
  bool has_summary() const { return std::filesystem::exists(dir_ / "summary.json"); }
  // Throws UserError where the run was not finished.
  nlohmann::json read_summary() const;
  void write_summary(const nlohmann::json& summary);

 private:
  void open_logs(int64_t step);

  std::filesystem::path dir_;
  bool write_;
  const MetricSinks sinks_;
  std::string config_, plan_;  // as written last
  bool said_it_is_lost_ = false;
  MovedLines moved_;
  LineLog metrics_, events_, samples_;
  std::unique_ptr<TensorBoardLog> tensorboard_;
  std::unique_ptr<PrometheusFile> prometheus_;
};

}  // namespace tmamba
