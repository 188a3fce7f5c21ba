// Trainer: how a start finds what earlier ones left in the run folder, and goes on from there.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/checkpoint_crew.h"
#include "launch/config_change.h"
#include "launch/progress.h"
#include "launch/trainer.h"

namespace tmamba {

namespace fs = std::filesystem;

// The newest whole checkpoint of the run folder, if there is one.
std::optional<CheckpointReader> Trainer::find_newest() {
  const auto newest = newest_checkpoint(
      world_.comm(), fs::path(config_.run.dir) / "checkpoints", [&](const fs::path& damaged, const std::string& why) {
        std::fprintf(stderr, "%s is damaged and was set aside: %s\n", damaged.c_str(), why.c_str());
        if (folder_) folder_->event("damaged", {{"path", damaged.string()}, {"problem", why}});
      });
  if (!newest) return std::nullopt;
  return CheckpointReader(*newest);
}

// Before anything is written: weights that another model has learnt are not to be trained on, nor to be pruned away.
void Trainer::require_same_model(const CheckpointReader& newest) const {
  const RunState state = read_state(newest);
  if (state.tokenizer_hash != train_file_->info().tokenizer_hash) {
    throw UserError(str(newest.path().string(), " was trained on data of another tokenizer than ", config_.data.train,
                        "; use its data or another run.dir"));
  }
  const RunConfig before = parse_config(state.config, newest.path().string() + " (configuration)", {});
  const auto changes = model_changes(before, config_);
  if (changes.empty()) return;
  const bool schedule = changes.back().key == "model.schedule";
  throw UserError(str("run.dir = ", config_.run.dir, " holds a run of another model, at step ", state.step,
                      ". This configuration has ", text_of(changes),
                      ". Go on with the model as it was, or give this one another run.dir",
                      schedule ? " (eval and generate can try another schedule on the same weights: --schedule)" : ""));
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
  } else {
    initialize_run(*ops_, step_->table(), static_cast<uint64_t>(config_.train.seed), step_->params(),
                   step_->optimizer());
  }
  folder_ = std::make_unique<RunFolder>(
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

// Whether the last starts have made no checkpoint that is newer than the one this start comes from.
bool Trainer::starts_in_vain() {
  progress_ = std::make_unique<RunProgress>(folder_->dir(), main_);
  Crew crew(world_.comm());
  bool in_vain = false;
  crew.first_does([&] { in_vain = progress_->stuck(last_saved_, state_.config); });
  in_vain = !crew.from_first(in_vain ? "yes" : "").empty();
  const std::string passed =
      crew.from_first(progress_->has_gone_back_to(last_saved_) ? std::to_string(progress_->passed_over()) : "");
  if (!passed.empty()) state_.passed_over = std::stoll(passed);
  if (!in_vain) return false;
  folder_->event("no_progress", {{"step", std::max<int64_t>(last_saved_, 0)}, {"starts", RunProgress::kStarts}});
  if (main_) {
    std::fprintf(stderr,
                 "%d starts of this run have ended before there was a newer checkpoint than that of step %lld, so it "
                 "is not started again (exit code %d). See %s; to try all the same delete %s\n",
                 RunProgress::kStarts, static_cast<long long>(std::max<int64_t>(last_saved_, 0)), kNoProgress,
                 (folder_->dir() / "events.jsonl").c_str(), progress_->file().c_str());
  }
  return true;
}

}  // namespace tmamba
