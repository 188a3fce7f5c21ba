// class RunReporter: what a run prints and logs: its header, a line of metrics and of progress per step, evaluations
// and samples, its last event, its summary.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/eval/evaluator.h"
#include "launch/plan/device_peak.h"
#include "launch/train/run_attempt.h"
#include "launch/train/run_profile.h"
#include "launch/train/save_controller.h"
#include "launch/train/training_step.h"

namespace tmamba {

class RunReporter {
 public:
  // All must outlive this. Collective.
  RunReporter(const RunResources& resources, RunAttempt& attempt, TrainingStep& step, const SaveController& saves)
      : resources_(resources),
        attempt_(attempt),
        step_(step),
        saves_(saves),
        peak_(peak_of_ranks(resources.config, resources.world)) {}

  void header() const;
  // `elapsed`: seconds since this attempt began to train.
  void step(const StepOutcome& outcome, double step_seconds, double elapsed);
  // The planned memory of the device beside the measured one.
  void memory();
  // `results` of the validation sets, in their order.
  void evaluation(const std::vector<EvalResult>& results, double seconds);
  void sample(const std::string& text, double seconds);
  // The last event of an attempt, with its time in goodput.json.
  void end(const std::string& kind, nlohmann::json details);
  // `time_up`: train.minutes ended the run before its last step.
  void write_summary(const RunProfile& profile, bool time_up);
  // Prints the summary file: a table beside other methods ("NAME=BITS"), or JSON.
  void print_summary(const std::vector<std::string>& compare, bool as_json) const;

 private:
  void metric(nlohmann::json line);
  void add_stall(nlohmann::json& line);
  void print_table(const nlohmann::json& summary, const std::vector<std::string>& compare) const;
  void print_step(const StepOutcome& outcome, double elapsed) const;
  double bits_per_byte(double nats_per_token) const;
  double step_tokens() const;

  const RunResources& resources_;
  RunAttempt& attempt_;
  TrainingStep& step_;
  const SaveController& saves_;
  const Peak peak_;  // that the MFU is relative to
  double logged_stall_seconds_ = 0;
  double valid_bits_per_byte_ = 0;  // of the last evaluation
  double tokens_per_s_ = 0;         // running mean of the last steps
};

}  // namespace tmamba
