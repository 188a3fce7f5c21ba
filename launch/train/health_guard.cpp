#include "launch/train/health_guard.h"

#include <nlohmann/json.hpp>

#include "dist/comm/collective_guard.h"
#include "launch/cli/format.h"
#include "launch/train/replica_check.h"

namespace tmamba {

HealthGuard::HealthGuard(const RunResources& resources, RunAttempt& attempt)
    : resources_(resources),
      attempt_(attempt),
      spikes_(resources.config.train.spike_window, resources.config.train.spike_sigmas) {}

void HealthGuard::restore() {
  try {
    spikes_.restore(attempt_.state().guard);
    attempt_.state().guard = spikes_.state();  // of this attempt's window
  } catch (const nlohmann::json::exception& error) {
    throw UserError(
        str(attempt_.latest().path, "/manifest.json: the state of the spike guard is damaged: ", error.what()));
  }
}

StepLimits HealthGuard::limits() const {
  const SpikeGuard::Limits spike = spikes_.limits();
  return {.clip = resources_.config.train.clip, .max_loss = spike.loss, .max_grad_norm = spike.grad_norm};
}

StepOutcome HealthGuard::run(const std::function<StepOutcome()>& step) {
  const StepOutcome first = step();
  if (first.applied || first.spike() || skipping()) return first;
  const StepOutcome second = step();
  attempt_.event("computed_again", {{"step", attempt_.state().step + 1}, {"finite", second.applied || second.spike()}});
  return second;
}

void HealthGuard::observe(const StepOutcome& outcome) {
  if (!outcome.applied) return;
  spikes_.applied(outcome.loss, outcome.grad_norm);
  attempt_.state().guard = spikes_.state();
}

void HealthGuard::count(const StepOutcome& outcome) {
  skips_in_a_row_ = outcome.applied ? 0 : skips_in_a_row_ + 1;
  attempt_.state().skipped += outcome.applied ? 0 : 1;
}

void HealthGuard::roll_back(SaveController& saves, TrainingStep& step) {
  attempt_.leave_if_fenced();
  saves.finish();
  RunState& state = attempt_.state();
  const RunState before = state;
  const int64_t saved = attempt_.latest().step;
  RunProgress& progress = attempt_.progress();
  const bool again = !broadcast_text(resources_.world.comm(), progress.rolled_back_to(saved) ? "yes" : "").empty();
  const std::string trouble = str("the loss or its gradient was not finite, or spiked, in ", skips_in_a_row_,
                                  " steps in a row (up to step ", before.step, "); ");
  const std::string advice = "Lower train.lr or raise train.warmup and start again";
  if (saved < 0) throw Error(str(trouble, "there is no checkpoint to roll back to. ", advice));
  if (again) {
    throw Error(str(trouble, "the run has rolled back to the latest checkpoint, of step ", saved, ", before. ", advice,
                    ": the run resumes from there"));
  }
  const auto latest = attempt_.find_latest();
  if (!latest) throw Error(str(trouble, "there is no complete checkpoint to roll back to. ", advice));
  attempt_.load(*latest, step);
  restore();
  state.config = before.config;
  state.seconds = before.seconds;
  state.place = before.place;
  state.skipped_sequences = before.skipped_sequences + (before.step - state.step) * resources_.batch.sequences();
  progress.rolled_back(state.step, state.skipped_sequences);
  attempt_.directory().rewind(state.step);
  attempt_.event("rollback", {{"step", state.step}, {"from", before.step}, {"passed_over", state.skipped_sequences}});
  if (resources_.is_main()) {
    message_line(str("step ", before.step, ": ", skips_in_a_row_, " steps in a row were skipped; rolled back to step ",
                     state.step, "; the data of the steps between is left out"));
  }
  skips_in_a_row_ = 0;
}

void HealthGuard::require_finite_end(const StepOutcome& last) const {
  if (last.applied || last.spike()) return;
  const LatestCheckpoint& latest = attempt_.latest();
  throw Error(str("step ", attempt_.state().step, ", the last of the run, is not finite (loss ", last.loss,
                  ", gradient norm ", last.grad_norm, "). ",
                  latest.step < 0 ? "There is no checkpoint" : str("The latest checkpoint is ", latest.path),
                  ". Lower train.lr or raise train.warmup and start again"));
}

void HealthGuard::check_replicas(const TrainingStep& step) const {
  const int64_t every = resources_.config.train.replica_check_every, now = attempt_.state().step;
  if (every <= 0 || now % every != 0) return;
  World& world = resources_.world;
  tmamba::check_replicas(world.comm(), resources_.shape, world.hosts(), step.table(), step.params(), now);
}

}  // namespace tmamba
