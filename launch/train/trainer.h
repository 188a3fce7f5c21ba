// class Trainer: the training loop. run() is the loop; train_step() is one optimizer step, from the loader to the
// update. What belongs to a run beside the loop: RunResources (data, device, plan), RunAttempt (state, directory,
// resume), SaveController, HealthGuard (repeat, skip, roll back), RunReporter (everything printed and logged).
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "launch/train/health_guard.h"
#include "launch/train/run_attempt.h"
#include "launch/train/run_profile.h"
#include "launch/train/run_reporter.h"
#include "launch/train/run_resources.h"
#include "launch/train/save_controller.h"
#include "launch/train/training_step.h"

namespace tmamba {

class Trainer {
 public:
  // Opens data and tokenizer, plans and allocates memory, and resumes from the latest complete checkpoint of run.dir.
  // Mistakes in configuration and data are thrown as UserError before anything is allocated. `take_over`: the run
  // directory, from an attempt that still trains in it, too. Collective.
  Trainer(RunConfig config, World& world, bool take_over = false);

  // Makes all checks that need no allocation, and throws the same. Collective.
  static void check(RunConfig config, World& world);

  // From now on a rank that hangs for run.hang_timeout is named and the job ends. Once per process.
  void start_watchdog();

  // Trains to the end, to a signal or to the switch file STOP in the run directory. Returns the exit code.
  int run();

  // One optimizer step (from 1) over the global batch.
  StepOutcome train_step(int64_t step);

  // Prints the summary of a run that is done; see RunReporter.
  void print_summary(const std::vector<std::string>& compare, bool as_json) const {
    reporter_->print_summary(compare, as_json);
  }

  // The flat parameters of this rank.
  const Tensor& params() const { return step_->params(); }
  const RunState& state() const { return attempt_.state(); }
  const RunConfig& config() const { return resources_.config; }

 private:
  using Clock = std::chrono::steady_clock;

  void start();
  int train();
  int already_done();
  void finish_step(const StepOutcome& outcome, double seconds);
  int stop();
  int finish(bool time_up);
  void close();
  bool evaluate_and_report(int64_t sequences, bool last);
  void write_sample();
  void log_failure(const std::string& problem) noexcept;
  bool due(int64_t every) const { return every > 0 && state().step % every == 0; }
  bool save_due(const StepOutcome& outcome) const;
  int stop_reason() const;
  bool stop_requested() const;
  double elapsed() const;

  RunResources resources_;
  RunAttempt attempt_;
  HealthGuard health_;
  std::unique_ptr<TrainingStep> step_;
  std::unique_ptr<SaveController> saves_;
  std::unique_ptr<RunProfile> profile_;
  std::unique_ptr<RunReporter> reporter_;
  const SwitchFile stop_switch_;
  Clock::time_point started_ = Clock::now();
};

}  // namespace tmamba
