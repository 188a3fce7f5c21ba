// Trainer: how a start finds what earlier ones left in the run folder, and goes on from there.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/io/fs.h"
#include "dist/comm/collective_guard.h"
#include "launch/cli/format.h"
#include "launch/cli/wall_time.h"
#include "launch/state/config_change.h"
#include "launch/train/trainer.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

// What stands for the step of the newest checkpoint where the file system would not say.
constexpr int64_t kNoCheckpointRead = -2;

}  // namespace

// The newest whole checkpoint of the run folder, if there is one.
std::optional<CheckpointReader> Trainer::find_newest() {
  const auto newest = newest_checkpoint(
      world_.comm(), fs::path(config_.run.dir) / "checkpoints", [&](const fs::path& damaged, const std::string& why) {
        std::fprintf(stderr, "%s is damaged and was set aside: %s\n", damaged.c_str(), why.c_str());
        const nlohmann::json details = {{"path", damaged.string()}, {"problem", why}};
        if (folder_) {
          folder_->event("damaged", details);
        } else {
          RunDirectory::append_event(config_.run.dir, "damaged", details);
        }
      });
  if (!newest) return std::nullopt;
  return CheckpointReader(*newest);
}

// Counts this start before it loads anything: what makes a start fail may make every one fail.
std::optional<CheckpointReader> Trainer::begin_start() {
  const auto look = [&] {
    try {
      return find_newest();
    } catch (const UserError&) {
      throw;
    } catch (const Error&) {
      count_start(kNoCheckpointRead);
      throw;
    }
  };
  auto newest = look();
  if (newest) require_same_model(*newest);
  count_start(newest ? newest->step() : -1);
  if (!newest) require_nothing_lost();
  return newest;
}

// Training from step 0 beside checkpoints of which none is whole would throw away what they hold.
void Trainer::require_nothing_lost() {
  CollectiveGuard(world_.comm()).on_root([&] {
    std::string names;
    for (const fs::path& path : folder_entries(fs::path(config_.run.dir) / "checkpoints")) {
      const std::string name = path.filename().string();
      if (name.starts_with("step-") && name.find(".tmp-") == std::string::npos) names += "\n  " + path.string();
    }
    if (names.empty()) return;
    throw Error(str("run.dir = ", config_.run.dir, " has checkpoints, but none of them can be loaded:", names,
                    "\nTo begin anew give another run.dir, or remove them; `transmamba checkpoint verify` says what is "
                    "wrong with one"));
  });
}

// Before anything is written: weights that another model has learnt are not to be trained on, nor to be pruned away.
void Trainer::require_same_model(const CheckpointReader& newest) const {
  const RunState state = read_state(newest);
  if (state.tokenizer_hash != train_file_->info().tokenizer_hash) {
    throw UserError(str(newest.path().string(), " was trained on data of another tokenizer than ", config_.data.train,
                        "; use its data or another run.dir"));
  }
  tmamba::require_same_model(state, config_);
}

void Trainer::load(const CheckpointReader& checkpoint) {
  state_ = read_state(checkpoint);
  load_params(checkpoint, step_->table(), params());
  load_optimizer(checkpoint, step_->table(), step_->optimizer());
  try {
    guard_.restore(state_.guard);
  } catch (const nlohmann::json::exception& error) {
    throw UserError(
        str(checkpoint.path().string(), "/manifest.json: the state of the spike guard is damaged: ", error.what()));
  }
  last_saved_ = state_.step;
  last_checkpoint_ = checkpoint.path().string();
}

void Trainer::resume_or_initialize(const std::optional<CheckpointReader>& newest) {
  if (newest) {
    load(*newest);
    const bool went_back = progress_->has_gone_back_to(last_saved_);
    const std::string passed =
        CollectiveGuard(world_.comm()).broadcast(went_back ? std::to_string(progress_->passed_over()) : "");
    if (!passed.empty()) state_.passed_over = std::stoll(passed);
  } else {
    initialize_run(*ops_, step_->table(), static_cast<uint64_t>(config_.train.seed), step_->params(),
                   step_->optimizer());
  }
  folder_ = std::make_unique<RunDirectory>(
      config_.run.dir, state_.step, main_,
      MetricSinks{.tensorboard = config_.run.tensorboard, .prometheus = config_.run.prometheus});
  const std::string config_before = state_.config;
  state_.config = to_toml(config_);
  state_.tokenizer_hash = train_file_->info().tokenizer_hash;
  state_.bytes_per_token =
      static_cast<double>(train_file_->info().source_bytes) / static_cast<double>(train_file_->info().tokens);
  folder_->write_config(state_.config);
  if (main_) folder_->write_plan(plan_to_json(make_plan(plan_.dims, plan_.transports)));
  start_profile();
  folder_->started(newest.has_value(), state_.step, world_.size());
  if (newest) say_what_changed(config_before);
}

// A run may go on with other data or another learning rate; whoever compares its curves must know where.
void Trainer::say_what_changed(const std::string& config_before) {
  const auto changes = training_changes(parse_config(config_before, "configuration before", {}), config_);
  if (changes.empty() || !main_) return;
  nlohmann::json keys = nlohmann::json::object();
  for (const ConfigChange& change : changes) keys[change.key] = {{"was", change.was}, {"now", change.now}};
  folder_->event("config_changed", {{"step", state_.step}, {"keys", keys}});
  message_line(str("goes on with ", text_of(changes)));
}

// Heartbeats lie in the run folder, which all hosts see.
void Trainer::start_watchdog() {
  if (config_.run.hang_timeout <= 0 || world_.size() == 1) return;
  const fs::path folder = folder_->dir() / "heartbeat";
  if (main_) fs::create_directories(folder);
  world_.comm().barrier();
  world_.start_watchdog({.timeout_seconds = config_.run.hang_timeout, .folder = folder});
}

// Throws where the last starts have made no checkpoint that is newer than that of `step`, from which this one comes.
void Trainer::count_start(int64_t step) {
  CollectiveGuard guard(world_.comm());
  bool in_vain = false;
  guard.on_root([&] {
    std::error_code error;
    fs::create_directories(config_.run.dir, error);
    if (error) throw UserError(str("run.dir: cannot create ", config_.run.dir, ": ", error.message()));
    progress_ = std::make_unique<RunProgress>(config_.run.dir, true);
    in_vain = progress_->stuck(step, to_toml(config_));
  });
  if (!main_) progress_ = std::make_unique<RunProgress>(config_.run.dir, false);
  if (guard.broadcast(in_vain ? "yes" : "").empty()) return;
  log_early("no_progress", {{"step", std::max<int64_t>(step, 0)}, {"starts", RunProgress::kStarts}});
  const fs::path run = config_.run.dir;
  throw ExitError(str(RunProgress::kStarts, " starts of this run have ended before there was a ",
                      step < 0 ? "checkpoint" : str("newer checkpoint than that of step ", step),
                      ", so it is not started again (exit code ", static_cast<int>(kNoProgress), "). See ",
                      (run / "events.jsonl").string(), "; to try all the same delete ", progress_->file().string()),
                  kNoProgress);
}

// An event of a start that has not opened the logs yet.
void Trainer::log_early(const std::string& kind, nlohmann::json details) const {
  if (!main_) return;
  details["ranks"] = world_.size();
  details["startup_s"] = process_age_seconds();
  RunDirectory::append_event(config_.run.dir, kind, details);
}

// The last word of a run that an exception ends, so that it is not taken for one that was killed.
void Trainer::log_failure(const std::string& problem) noexcept {
  if (!main_) return;
  try {
    const nlohmann::json details = {{"step", state_.step}, {"problem", problem}};
    if (folder_) {
      log_end("failed", details);
    } else {
      log_early("failed", details);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
}

}  // namespace tmamba
