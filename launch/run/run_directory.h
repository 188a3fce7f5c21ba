// class RunDirectory: the directory of a run: config.toml (effective, with origins), plan.json, metrics.jsonl (one
// object per step, evaluation or sample), lost.jsonl (those lines of steps that were repeated), events.jsonl,
// samples.txt, goodput.json, tensorboard/, checkpoints/. Only rank 0 writes. launch/run/run_record.h reads it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launch/cli/line_log.h"
#include "launch/run/lease.h"
#include "launch/run/prometheus.h"
#include "launch/run/tensorboard.h"

namespace tmamba {

// Lines removed from metrics.jsonl.
struct MovedLines {
  int64_t steps = 0;    // moved to lost.jsonl
  int64_t damaged = 0;  // truncated or not JSON: dropped
};

// Where metrics are written beside metrics.jsonl.
struct MetricSinks {
  bool tensorboard = false;  // event files in tensorboard/
  std::string prometheus;    // PrometheusFile; empty: none
};

class RunDirectory {
 public:
  // Throws UserError where `dir` exists but is not a directory that can be written in.
  static void require_usable(const std::filesystem::path& dir);

  // Creates the directory if it is missing and opens the logs for appending. Metrics of steps after `resumed_step`,
  // left by an attempt that stopped after its last checkpoint, move to lost.jsonl, so that metrics.jsonl has each step
  // once. Writes are ignored without a lease (null: every rank but 0) and after it was lost. A log line that cannot be
  // written later is lost, which is printed to standard error; other writes that fail throw. The lease must outlive
  // this.
  RunDirectory(const std::filesystem::path& dir, int64_t resumed_step, const Lease* lease,
               const MetricSinks& sinks = {});

  const std::filesystem::path& dir() const { return dir_; }
  std::filesystem::path checkpoints() const { return dir_ / "checkpoints"; }

  void write_config(const std::string& toml);
  // Replaces plan.json atomically.
  void write_plan(const std::string& json);
  // Both add "time": in metrics as seconds since 1970, in events in UTC.
  // Appends a line to metrics.jsonl and hands it to the other sinks; the first one of an attempt carries the build.
  void metric(nlohmann::json line);
  // Logs that an attempt is ready to train, how long its startup took and how many steps it must repeat.
  void started(bool resumed, int64_t step, int ranks);
  void event(const std::string& kind, const nlohmann::json& details);
  // The same before the logs of `dir` are open. What cannot be written is lost; the directory is not created.
  static void append_event(const std::filesystem::path& dir, const std::string& kind, const nlohmann::json& details);
  void sample(int64_t step, const std::string& text);
  // Whether the directory, or a log in it, was removed or moved since it was opened.
  bool lost() const;
  // Recreates what is missing of a lost directory, with logs that begin at `step` and an event "folder_lost". What was
  // logged before is lost. Returns false if that fails; the failure is printed to standard error once.
  bool recreate(int64_t step, int ranks);
  // One line: where the run's time went. Never throws.
  std::string time_text() const;
  // Writes goodput.json: where the run's time went so far (launch/run/goodput.h).
  void write_goodput();
  // Moves metrics of steps after `step` to lost.jsonl: the run continues from there.
  void rewind(int64_t step);
  bool has_summary() const { return std::filesystem::exists(dir_ / "summary.json"); }
  // Throws UserError where the run has not finished.
  nlohmann::json read_summary() const;
  void write_summary(const nlohmann::json& summary);

 private:
  void open_logs(int64_t step);
  bool writes() const { return lease_ != nullptr && lease_->held_now(); }

  std::filesystem::path dir_;
  const Lease* lease_;
  const MetricSinks sinks_;
  std::string config_, plan_;  // as written last
  bool loss_reported_ = false;
  bool build_recorded_ = false;  // in the first line of metrics of this attempt
  MovedLines moved_;
  LineLog metrics_, events_, samples_;
  std::unique_ptr<TensorBoardLog> tensorboard_;
  std::unique_ptr<PrometheusFile> prometheus_;
};

}  // namespace tmamba
