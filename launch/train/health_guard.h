// class HealthGuard: what a run does when a step goes wrong: it repeats a step that is not finite, counts the skipped
// ones, rolls back to the latest checkpoint after too many in a row, and compares the replicas of the weights.
#pragma once

#include <functional>

#include "launch/train/run_attempt.h"
#include "launch/train/save_controller.h"
#include "launch/train/spike_guard.h"
#include "launch/train/training_step.h"

namespace tmamba {

class HealthGuard {
 public:
  // Both must outlive this.
  HealthGuard(const RunResources& resources, RunAttempt& attempt);

  // Takes the spike guard's history from the state that the attempt has loaded. Throws UserError where it is damaged.
  void restore();

  // Limits of the next step.
  StepLimits limits() const;
  // Runs `step`; if its result is not finite, runs it again. After a transient fault of a device the second result
  // is correct, and the run has the bits of one without the fault. Bad data or weights give the same result twice.
  StepOutcome run(const std::function<StepOutcome()>& step);
  // Remembers the losses of applied steps. Called for every step that was computed, also for one that is repeated.
  void observe(const StepOutcome& outcome);
  // Counts the step that the run has made.
  void count(const StepOutcome& outcome);

  bool skipping() const { return skips_in_a_row_ > 0; }
  bool must_roll_back() const { return skips_in_a_row_ >= resources_.config.train.max_skips; }
  // Reloads the latest checkpoint and leaves out the data up to here: the same steps on the same data would end where
  // they ended before. Throws Error where the run did so from this checkpoint before. Collective.
  void roll_back(SaveController& saves, TrainingStep& step);

  // Throws Error where the last step of the run was skipped because it was not finite.
  void require_finite_end(const StepOutcome& last) const;

  // Every train.replica_check_every steps: throws Error where replicas of the weights differ. Collective.
  void check_replicas(const TrainingStep& step) const;

 private:
  const RunResources& resources_;
  RunAttempt& attempt_;
  SpikeGuard spikes_;
  int64_t skips_in_a_row_ = 0;
};

}  // namespace tmamba
