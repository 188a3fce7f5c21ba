#include "launch/train/run_attempt.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/io/fs.h"
#include "dist/comm/collective_guard.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/cli/wall_time.h"
#include "launch/state/config_change.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

// Counted in place of the latest checkpoint's step when the file system could not read it.
constexpr int64_t kNoCheckpointRead = -2;

}  // namespace

std::optional<CheckpointReader> RunAttempt::find_latest() {
  const fs::path run = resources_.config.run.dir;
  const auto latest = latest_checkpoint(
      resources_.world.comm(), run / "checkpoints", [&](const fs::path& damaged, const std::string& why) {
        std::fprintf(stderr, "%s is damaged and was set aside: %s\n", damaged.c_str(), why.c_str());
        const nlohmann::json details = {{"path", damaged.string()}, {"problem", why}};
        directory_ ? directory_->event("damaged", details) : RunDirectory::append_event(run, "damaged", details);
      });
  if (!latest) return std::nullopt;
  return CheckpointReader(*latest);
}

// Rank 0 alone has it; the others learn what identifies it, or why there is none.
void RunAttempt::take_lease() {
  const fs::path run = resources_.config.run.dir;
  CollectiveGuard guard(resources_.world.comm());
  int code = kDone;
  std::string text;
  guard.on_root([&] {
    try {
      lease_ = std::make_unique<Lease>(run, LeaseOptions{.take_over = take_over_, .job = batch_job()});
      text = str(lease_->id().number, " ", lease_->id().nonce);
    } catch (const ExitError& error) {
      code = error.exit_code();
      text = error.what();
    }
  });
  code = std::stoi(guard.broadcast(std::to_string(code)));
  text = guard.broadcast(text);
  if (code != kDone) throw ExitError(text, code);
  const size_t space = text.find(' ');
  lease_id_ = {.run = run, .number = std::stoll(text.substr(0, space)), .nonce = text.substr(space + 1)};
}

std::optional<CheckpointReader> RunAttempt::begin() {
  take_lease();
  const auto find = [&] {
    try {
      return find_latest();
    } catch (const UserError&) {
      throw;
    } catch (const Error&) {
      count(kNoCheckpointRead);
      throw;
    }
  };
  auto latest = find();
  if (latest) require_same_model(*latest);
  count(latest ? latest->step() : -1);
  if (!latest) require_nothing_lost();
  return latest;
}

// Training from step 0 beside checkpoints of which none is complete would throw away what they hold.
void RunAttempt::require_nothing_lost() const {
  CollectiveGuard(resources_.world.comm()).on_root([&] {
    const std::string& run = resources_.config.run.dir;
    std::string names;
    for (const fs::path& path : folder_entries(fs::path(run) / "checkpoints")) {
      const std::string name = path.filename().string();
      if (name.starts_with("step-") && name.find(".tmp-") == std::string::npos) names += "\n  " + path.string();
    }
    if (names.empty()) return;
    throw Error(
        str("run.dir = ", run, " has checkpoints, but none of them can be loaded:", names,
            "\nTo start from step 0 give another run.dir, or remove them; `transmamba checkpoint verify` prints "
            "what is wrong with one"));
  });
}

// Checked before anything is written: weights that another model has learnt must be neither trained on nor pruned.
void RunAttempt::require_same_model(const CheckpointReader& latest) const {
  const RunState state = read_state(latest);
  if (state.tokenizer_hash != resources_.data->train.info().tokenizer_hash) {
    throw UserError(str(latest.path().string(), " was trained on data of another tokenizer than ",
                        resources_.config.data.train, "; use its data or another run.dir"));
  }
  tmamba::require_same_model(state, resources_.config);
  require_same_files(state, resources_.config, resources_.data->used_files());
}

// Throws where the last attempts have made no checkpoint newer than that of `step`, which this one resumes from.
void RunAttempt::count(int64_t step) {
  const std::string& run = resources_.config.run.dir;
  CollectiveGuard guard(resources_.world.comm());
  bool stuck = false;
  guard.on_root([&] {
    progress_ = std::make_unique<RunProgress>(run, true);
    stuck = progress_->stuck(step, to_toml(resources_.config));
  });
  if (!guard.is_root()) progress_ = std::make_unique<RunProgress>(run, false);
  if (guard.broadcast(stuck ? "yes" : "").empty()) return;
  early_event("no_progress", {{"step", std::max<int64_t>(step, 0)}, {"starts", RunProgress::kAttempts}});
  throw ExitError(
      str(RunProgress::kAttempts, " attempts of this run have ended before there was a ",
          step < 0 ? "checkpoint" : str("newer checkpoint than that of step ", step),
          ", so it is not started again (exit code ", static_cast<int>(kNoProgress), "). See ",
          (fs::path(run) / "events.jsonl").string(), "; to try all the same delete ", progress_->file().string()),
      kNoProgress);
}

void RunAttempt::load(const CheckpointReader& checkpoint, TrainingStep& step) {
  state_ = read_state(checkpoint);
  load_params(checkpoint, step.table(), step.params());
  load_optimizer(checkpoint, step.table(), step.optimizer());
  latest_ = {.step = state_.step, .path = checkpoint.path().string()};
}

void RunAttempt::resume(const CheckpointReader& checkpoint, TrainingStep& step) {
  load(checkpoint, step);
  const bool rolled_back = progress_->rolled_back_to(latest_.step);
  const std::string passed =
      broadcast_text(resources_.world.comm(), rolled_back ? std::to_string(progress_->skipped_sequences()) : "");
  if (passed.empty()) return;
  const int64_t skipped = std::stoll(passed);
  if (!state_.place.stretches.empty()) state_.place.draw(skipped - state_.skipped_sequences);
  state_.skipped_sequences = skipped;
}

void RunAttempt::open_directory(bool resumed) {
  const RunConfig& config = resources_.config;
  const bool writes = resources_.is_main();
  directory_ = std::make_unique<RunDirectory>(
      config.run.dir, state_.step, lease_.get(),
      MetricSinks{.tensorboard = config.run.tensorboard, .prometheus = config.run.prometheus});
  const std::string config_before = state_.config;
  RunData& data = *resources_.data;
  const int64_t train_tokens = data.train.info().tokens;
  const auto moved = continue_place(state_, config, data.used_files(), train_tokens);
  data.loader.begin_at(start_of_last(state_.place.stretches, train_tokens));
  state_.config = to_toml(config);
  state_.tokenizer_hash = resources_.data->train.info().tokenizer_hash;
  state_.bytes_per_token = resources_.data->bytes_per_token();
  directory_->write_config(state_.config);
  const RunPlan& plan = resources_.plan;
  if (writes) directory_->write_plan(plan_to_json(make_plan(plan.dims, plan.transports)));
  directory_->started(resumed, state_.step, resources_.world.size());
  if (resumed) log_changes(config_before);
  for (const PlaceChange& change : moved) {
    nlohmann::json details = change.details;
    details["step"] = state_.step;
    event(change.event, details);
    if (resources_.is_main()) message_line(change.text);
  }
}

// A run may resume with other data or another learning rate; whoever compares its curves must know where.
void RunAttempt::log_changes(const std::string& config_before) {
  const auto changes = training_changes(parse_config(config_before, "configuration before", {}), resources_.config);
  if (changes.empty() || !resources_.is_main()) return;
  nlohmann::json keys = nlohmann::json::object();
  for (const ConfigChange& change : changes) keys[change.key] = {{"was", change.was}, {"now", change.now}};
  event("config_changed", {{"step", state_.step}, {"keys", keys}});
  message_line(str("resuming; changed: ", text_of(changes)));
}

void RunAttempt::keep_directory() {
  if (!directory_->lost()) return;
  if (!directory_->recreate(state_.step, resources_.world.size())) return;
  progress_->write_again();
  std::error_code ignored;  // the watchdog reports what it cannot write
  if (resources_.world.size() > 1) fs::create_directories(directory_->dir() / "heartbeat", ignored);
}

// If this attempt were started again it would take the directory back.
void RunAttempt::leave_if_fenced() const {
  CollectiveGuard guard(resources_.world.comm());
  const std::string problem = guard.broadcast(guard.is_root() && !lease_->held_now() ? lease_->problem() : "");
  if (!problem.empty()) throw ExitError(problem, kNoProgress);
}

void RunAttempt::early_event(const std::string& kind, nlohmann::json details) const {
  if (lease_ == nullptr || !lease_->held_now()) return;
  details["ranks"] = resources_.world.size();
  details["startup_s"] = process_age_seconds();
  RunDirectory::append_event(resources_.config.run.dir, kind, details);
}

}  // namespace tmamba
