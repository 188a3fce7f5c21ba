// Trainer: what keeps a run from losing anything: resuming, saving, stopping on purpose, going back.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/checkpoint/slice_relay.h"
#include "data/io/fs.h"
#include "dist/comm/collective_guard.h"
#include "launch/cli/format.h"
#include "launch/cli/signals.h"
#include "launch/train/trainer.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

// Switch files in the run folder.
constexpr const char* kSaveSwitch = "SAVE";
constexpr const char* kStopSwitch = "STOP";
constexpr int kStopSwitchReason = 1000;  // beside the numbers of signals

std::string name_of_reason(int reason) { return reason == kStopSwitchReason ? kStopSwitch : signal_name(reason); }

bool switched(const fs::path& run, const char* name) {
  std::error_code ignored;  // what cannot be looked at is not there
  return fs::exists(run / name, ignored);
}

void switch_off(const fs::path& run, const char* name) {
  std::error_code error;
  fs::remove(run / name, error);
  if (error) std::fprintf(stderr, "cannot remove %s: %s\n", (run / name).c_str(), error.message().c_str());
}

}  // namespace

// Everything a save needs, the space on the disk too, is there or missed before the first step.
void Trainer::prepare_saving() {
  if (config_.checkpoint.writers == "node" && world_.size() > 1) {
    host_ = std::make_unique<HostGroup>(world_.comm(), world_.host_leader(), SliceRelay::kBytesPerRank);
  }
  saver_ = std::make_unique<Saver>(world_.comm(), folder_->checkpoints(),
                                   SaveOptions{.keep = config_.checkpoint.keep,
                                               .keep_every = config_.checkpoint.keep_every,
                                               .check_slices_first = true,
                                               .host = host_.get(),
                                               .before_publish = [this] { progress_->require_ours(); }});
  snapshot_ = std::make_unique<Snapshot>(ops_->device());
  own_slices([&](const Tensor& x) { return snapshot_->copy(x); });
  try_checkpoint_space(world_.comm(), folder_->checkpoints(), snapshot_->bytes(), host_.get());
  const SaveEvery& every = config_.checkpoint.every;
  if (config_.checkpoint.async && (every.automatic || every.steps > 0)) snapshot_->clear();
}

// Copies where training goes on meanwhile, and where the host cannot read the tensors in place.
std::vector<TensorSlice> Trainer::slices_to_save(bool behind) {
  const bool copies = behind || ops_->device() != Device::cpu;
  if (copies) snapshot_->clear();
  return own_slices([&](const Tensor& x) { return copies ? snapshot_->copy(x) : x; });
}

std::vector<TensorSlice> Trainer::own_slices(const std::function<Tensor(const Tensor&)>& host) {
  const bool owns = step_->reducer().sharding().represents_owned(shape_.zero_rank(mesh_->coordinates()));
  return run_slices(step_->table(), params(), step_->optimizer(), owns, mesh_->coordinates().tp == 0, host);
}

// Somebody may remove the run folder, or move it away, under a run: it is made anew, and training goes on. Where
// another start of the run has put its own in the place, save() ends this one.
void Trainer::keep_folder() {
  if (!folder_->lost() || !progress_->taken_over().empty()) return;
  if (!folder_->make_anew(state_.step, world_.size())) return;
  progress_->write_again();
  std::error_code ignored;  // the watchdog says what it cannot write
  if (world_.size() > 1) fs::create_directories(folder_->dir() / "heartbeat", ignored);
}

// Starts a checkpoint of this step; with `behind` it is written while training goes on.
void Trainer::save(bool behind) {
  keep_folder();
  if (saver_ && saver_->in_flight()) report_save(saver_->finish());
  const bool asked = main_ && switched(config_.run.dir, kSaveSwitch);
  if (last_saved_ == state_.step) {
    if (asked) switch_off(config_.run.dir, kSaveSwitch);
    return;
  }
  save_was_asked_for_ = asked;
  state_.guard = guard_.state();
  auto outcome = saver_->start(
      state_.step, [&] { return slices_to_save(behind); }, state_json(state_));
  if (!outcome && !behind) outcome = saver_->finish();
  if (outcome) report_save(*outcome);
}

// A checkpoint of this step, or an error: the run is about to end.
void Trainer::save_now() {
  // What was saved before may have gone with the run folder.
  const bool gone = main_ && !switched(last_checkpoint_, "manifest.json");
  if (!broadcast_text(world_.comm(), gone ? "gone" : "").empty()) last_saved_ = -1;
  save(false);
  if (last_saved_ == state_.step) return;
  throw Error(str("step ", state_.step, " could not be saved: ", save_problem_, ". The newest checkpoint is ",
                  last_checkpoint_.empty() ? "none" : last_checkpoint_));
}

void Trainer::report_save(const SaveOutcome& outcome) {
  save_interval_.saved(outcome.stall_seconds);
  if (!outcome.problem.empty()) {
    save_problem_ = outcome.problem;
    // The switch stays, for another try: not at every step.
    retry_seconds_ = std::clamp(2 * retry_seconds_, 1.0, 600.0);
    failed_at_ = Clock::now();
    folder_->event("checkpoint_failed", {{"step", outcome.step}, {"problem", outcome.problem}});
    if (main_) {
      std::fprintf(stderr, "step %lld: there is no checkpoint of step %lld: %s\n", static_cast<long long>(state_.step),
                   static_cast<long long>(outcome.step), outcome.problem.c_str());
    }
    return leave_if_taken_over();
  }
  retry_seconds_ = 0;
  if (save_was_asked_for_) switch_off(folder_->dir(), kSaveSwitch);
  const SaveReport& report = outcome.report;
  last_saved_ = outcome.step;
  last_checkpoint_ = report.path.string();
  nlohmann::json event = {{"step", outcome.step},    {"path", last_checkpoint_},
                          {"bytes", report.bytes},   {"seconds", report.seconds},
                          {"whole_at", state_.step}, {"stall_seconds", outcome.stall_seconds}};
  if (config_.checkpoint.every.automatic) event["next_in_seconds"] = save_interval_.seconds().value_or(0);
  if (!report.warnings.empty()) event["warnings"] = report.warnings;
  folder_->event("checkpoint", event);
  if (!main_) return;
  for (const std::string& warning : report.warnings) std::fprintf(stderr, "%s\n", warning.c_str());
  message_line(str("step ", outcome.step, ": checkpoint ", last_checkpoint_, " (", bytes_text(report.bytes), ", ",
                   fixed(report.seconds, 2), " s, training waited ", fixed(outcome.stall_seconds * 1e3, 1), " ms)"));
}

// A start whose folder another has taken must not be started again: it would take the folder back.
void Trainer::leave_if_taken_over() {
  CollectiveGuard guard(world_.comm());
  std::string problem;
  guard.on_root([&] { problem = progress_->taken_over(); });
  problem = guard.broadcast(problem);
  if (!problem.empty()) throw ExitError(problem, kNoProgress);
}

// Why this rank wants to stop: a signal, or the switch file, at which rank 0 looks; 0: it does not.
int Trainer::stop_reason() const {
  if (pending_signal() != 0) return pending_signal();
  return main_ && switched(config_.run.dir, kStopSwitch) ? kStopSwitchReason : 0;
}

bool Trainer::wants_save() const {
  if (!main_ || !saver_ || saver_->in_flight()) return false;
  const bool too_soon = retry_seconds_ > 0 && seconds_since(failed_at_) < retry_seconds_;
  if (switched(config_.run.dir, kSaveSwitch) && !too_soon) return true;
  return config_.checkpoint.every.automatic && save_interval_.due();
}

// A wish to stop has been heard when the run ends by itself, too: the next start is not meant.
void Trainer::switch_off_stop() const {
  if (main_ && switched(config_.run.dir, kStopSwitch)) switch_off(config_.run.dir, kStopSwitch);
}

int Trainer::stop_and_requeue() {
  // Any rank's reason is that of all: only some may have seen the signal.
  double reason = stop_reason();
  world_.comm().all_reduce(Tensor(&reason, {1}, DType::f64), ReduceOp::max).wait();
  const std::string name = name_of_reason(static_cast<int>(reason));
  save_now();
  log_end("stop", {{"step", state_.step}, {"signal", name}});
  if (main_) {
    switch_off_stop();
    message_line(str("time: ", folder_->time_text()));
    std::printf("%s: saved step %lld and stopped. Start the same command again to go on.\n", name.c_str(),
                static_cast<long long>(state_.step));
  }
  progress_->moved_on();
  return kSavedAndStopped;
}

// After too many skipped steps in a row: on from the newest checkpoint, with the data that comes after the trouble. The
// same steps on the same data would only end where they ended before.
void Trainer::go_back() {
  if (saver_->in_flight()) report_save(saver_->finish());
  const int64_t from = state_.step, skips = skips_in_a_row_, passed_before = state_.passed_over;
  const RunState now = state_;
  const bool again = !broadcast_text(world_.comm(), progress_->has_gone_back_to(last_saved_) ? "yes" : "").empty();
  const std::string trouble =
      str("the loss or its gradient was not finite, or leapt, in ", skips, " steps in a row (up to step ", from, "); ");
  const std::string advice = "Lower train.lr or raise train.warmup and start again";
  if (last_saved_ < 0) throw Error(str(trouble, "there is no checkpoint to go back to. ", advice));
  if (again) {
    throw Error(str(trouble, "the run has gone back to the newest checkpoint, of step ", last_saved_, ", before. ",
                    advice, ": the run resumes from there"));
  }
  const auto newest = find_newest();
  if (!newest) throw Error(str(trouble, "there is no whole checkpoint to go back to. ", advice));
  load(*newest);
  state_.config = now.config;
  state_.seconds = now.seconds;
  state_.passed_over = passed_before + (from - state_.step) * config_.train.global_batch;
  skips_in_a_row_ = 0;
  progress_->went_back(state_.step, state_.passed_over);
  folder_->rewind(state_.step);
  folder_->event("rollback", {{"step", state_.step}, {"from", from}, {"passed_over", state_.passed_over}});
  if (main_) {
    message_line(str("step ", from, ": ", skips, " steps in a row were skipped; back to step ", state_.step,
                     ", leaving out the data of the steps between"));
  }
}

}  // namespace tmamba
