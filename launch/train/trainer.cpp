#include "launch/train/trainer.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "dist/comm/collective_guard.h"
#include "kernels/base/clock.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/cli/signals.h"
#include "launch/eval/sampler.h"
#include "launch/train/kernel_choices.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

constexpr int kStopSwitchReason = 1000;  // beside the numbers of signals

// Allocates everything of the device, once.
std::unique_ptr<TrainingStep> make_step(const RunResources& run) {
  Mesh& mesh = *run.mesh;
  const StepRanks ranks{.tp = mesh.tp(),
                        .sp = mesh.sp(),
                        .zero = mesh.zero(),
                        .all = *run.all,
                        .shape = run.shape,
                        .at = mesh.coordinates()};
  const StepOptions options{.micro_batches = run.batch.micro_batches,
                            .global_sequences = run.batch.sequences(),
                            .record = run.config.run.graph};
  return std::make_unique<TrainingStep>(run.config, run.plan, ranks, options, *run.ops);
}

}  // namespace

Trainer::Trainer(RunConfig config, World& world, bool take_over)
    : resources_(std::move(config), world),
      attempt_(resources_, take_over),
      health_(resources_, attempt_),
      stop_switch_(resources_.config.run.dir, "STOP") {
  try {
    start();
  } catch (const UserError&) {  // the run directory is as it was
    throw;
  } catch (const ExitError&) {  // already logged, or the directory belongs to another attempt
    throw;
  } catch (const std::exception& error) {
    log_failure(error.what());
    throw;
  }
}

void Trainer::check(RunConfig config, World& world) {
  const RunResources checked(std::move(config), world);
  if (!checked.is_main()) return;
  for (const std::string& warning : checked.schedule->warnings())
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
}

void Trainer::start() {
  const auto latest = attempt_.begin();
  step_ = make_step(resources_);
  if (latest) {
    attempt_.resume(*latest, *step_);
    health_.restore();
  } else {
    initialize_run(*resources_.ops, step_->table(), static_cast<uint64_t>(config().train.seed), step_->params(),
                   step_->optimizer());
  }
  saves_ = std::make_unique<SaveController>(resources_, attempt_, *step_);
  profile_ = std::make_unique<RunProfile>(resources_, *step_, state().step);
  reporter_ = std::make_unique<RunReporter>(resources_, attempt_, *step_, *saves_);
  attempt_.open_directory(latest.has_value());
  *resources_.schedule = Schedule(config(), state().place.batches);
  if (!config().run.measure_kernels) return;
  settle_kernel_choices(*resources_.ops, resources_.world.comm(), config().run.dir, [this] { step_->warm_up(); });
}

int Trainer::run() {
  try {
    return train();
  } catch (const ExitError&) {  // the directory belongs to another attempt
    throw;
  } catch (const std::exception& error) {
    log_failure(error.what());
    throw;
  }
}

int Trainer::train() {
  RunState& state = attempt_.state();
  reporter_->header();
  if (state.step >= resources_.schedule->total_steps()) return already_done();
  saves_->prepare();
  const double seconds_before = state.seconds;
  started_ = Clock::now();
  int64_t steps_here = 0;
  bool time_up = false;
  while (state.step < resources_.schedule->total_steps() && !time_up) {
    const auto begin = Clock::now();
    const StepOutcome outcome = health_.run([&] { return train_step(state.step + 1); });
    state.seconds = seconds_before + elapsed();
    finish_step(outcome, seconds_since(begin));
    // By the second step every kernel has its workspace, and steps are recorded.
    if (++steps_here == 2) reporter_->memory();
    if (health_.must_roll_back()) {
      health_.roll_back(*saves_, *step_);
      continue;
    }
    if (state.step == resources_.schedule->total_steps()) {
      health_.require_finite_end(outcome);
      break;
    }
    if (outcome.votes.stop > 0) return stop();
    time_up = outcome.votes.time_up > 0;
    if (due(config().train.eval_every) && !evaluate_and_report(config().train.eval_sequences, false)) return stop();
    if (due(config().train.sample_every)) write_sample();
    if (save_due(outcome)) saves_->save(config().checkpoint.async);
  }
  return finish(time_up);
}

StepOutcome Trainer::train_step(int64_t step) {
  const BatchSplit& batch = resources_.batch;
  const TrainConfig& t = config().train;
  const auto load = [&](int64_t micro, const Tensor& tokens_Bn, const Tensor& targets_Bn) {
    const int64_t first = state().place.sequences() + (step - 1 - state().step) * batch.sequences() +
                          batch.first_sequence(resources_.mesh->coordinates().dp, micro);
    const Batch sequences = resources_.data->loader.load(first, batch.micro_batch);
    // Targets are shifted by one before sequences are split, so a split needs no token of the next rank.
    step_->ranks().shard(tokens_Bn, sequences.tokens_BT);
    step_->ranks().shard(targets_Bn, sequences.targets_BT);
  };
  const auto votes = [&] {
    return StepVotes{.time_up = t.minutes > 0 && elapsed() > 60 * t.minutes ? 1.0 : 0.0,
                     .stop = stop_reason() != 0 ? 1.0 : 0.0,
                     .save = saves_->wants_save() ? 1.0 : 0.0,
                     .save_ready = saves_->ready() ? 1.0 : 0.0};
  };
  const StepInputs inputs{
      .number = step - state().skipped, .lr = resources_.schedule->learning_rate(step), .limits = health_.limits()};
  profile_->begin_step();
  const StepOutcome outcome = step_->run(profile_->ops(), inputs, load, votes);
  profile_->end_step();
  health_.observe(outcome);
  return outcome;
}

// Runs after every step, applied or skipped, on every rank.
void Trainer::finish_step(const StepOutcome& outcome, double seconds) {
  RunState& state = attempt_.state();
  ++state.step;
  state.tokens += resources_.batch.sequences() * config().data.seq_len;
  state.place.draw(resources_.batch.sequences());
  health_.count(outcome);
  saves_->count_step(seconds);
  reporter_->step(outcome, seconds, elapsed());
  saves_->advance(outcome.votes.save_ready == resources_.world.size());
  health_.check_replicas(*step_);
}

// Not while steps are skipped: the checkpoint on disk is at least as good.
bool Trainer::save_due(const StepOutcome& outcome) const {
  return (due(config().checkpoint.every.steps) || outcome.votes.save > 0) && !health_.skipping();
}

int Trainer::already_done() {
  const bool is_main = resources_.is_main();
  if (is_main)
    std::printf("all %lld steps of this run are done\n", static_cast<long long>(resources_.schedule->total_steps()));
  // A run that ended between its last checkpoint and its summary gets the summary now.
  const std::string summary =
      broadcast_text(resources_.world.comm(), is_main && attempt_.directory().has_summary() ? "yes" : "");
  if (summary.empty()) return finish(false);
  close();
  return kDone;
}

// Why this rank votes to stop: a signal, or on rank 0 the switch file or a lost lease; 0: it does not.
int Trainer::stop_reason() const {
  if (pending_signal() != 0) return pending_signal();
  return resources_.is_main() && (stop_switch_.is_set() || attempt_.fenced()) ? kStopSwitchReason : 0;
}

// Whether any rank votes to stop, between steps. Collective.
bool Trainer::stop_requested() const {
  double stop = stop_reason() != 0 ? 1 : 0;
  resources_.world.comm().all_reduce(Tensor(&stop, {1}, DType::f64), ReduceOp::max).wait();
  return stop > 0;
}

int Trainer::stop() {
  attempt_.leave_if_fenced();
  // Only some ranks may have received the signal.
  double reason = stop_reason();
  resources_.world.comm().all_reduce(Tensor(&reason, {1}, DType::f64), ReduceOp::max).wait();
  const std::string name = reason == kStopSwitchReason ? "STOP" : signal_name(static_cast<int>(reason));
  saves_->save_now();
  reporter_->end("stop", {{"step", state().step}, {"signal", name}});
  if (resources_.is_main()) {
    message_line(str("time: ", attempt_.directory().time_text()));
    std::printf("%s: saved step %lld and stopped. Start the same command again to resume.\n", name.c_str(),
                static_cast<long long>(state().step));
  }
  close();
  return kSavedAndStopped;
}

// The weights are saved first: a run that is stopped in its last evaluation or sample makes these when it starts again.
// `time_up`: train.minutes ended the run before its last step.
int Trainer::finish(bool time_up) {
  saves_->save_now();
  if (resources_.is_main() && stop_switch_.is_set()) stop_switch_.clear();  // met: no step follows
  if (!evaluate_and_report(0, true)) return stop();
  write_sample();
  if (stop_requested()) return stop();
  reporter_->end(
      time_up ? "time_up" : "done",
      {{"step", state().step}, {"tokens", state().tokens}, {"total_steps", resources_.schedule->total_steps()}});
  reporter_->write_summary(*profile_, time_up);
  close();
  return kDone;
}

// A request to stop is met too when the run ends by itself: it does not apply to the next attempt.
void Trainer::close() {
  attempt_.leave_if_fenced();
  if (resources_.is_main() && stop_switch_.is_set()) stop_switch_.clear();
  attempt_.progress().moved_on();
}

// On the first `sequences` windows of each validation set; 0: all. False: the run is to stop before it is complete. A
// loss that is not finite ends the run only if this is its last evaluation: HealthGuard may return to better weights.
bool Trainer::evaluate_and_report(int64_t sequences, bool last) {
  if (resources_.data->valid.empty()) return true;
  const auto begin = Clock::now();
  const EvalContext context{.ops = *resources_.ops,
                            .scratch = step_->scratch(),
                            .model = step_->model(),
                            .ranks = step_->ranks(),
                            .params = params(),
                            .mesh = *resources_.mesh,
                            .world = resources_.world.comm(),
                            .stop = [this] { return stop_requested(); }};
  std::vector<EvalResult> results;
  for (const ValidationFile& set : resources_.data->valid) {
    const auto result = evaluate(context, set.file, sequences);
    if (!result) return false;
    results.push_back(*result);
    if (result->finite()) continue;
    const std::string problem = str("the loss on validation set ", set.name, " is not finite (", result->loss(), ")");
    if (last) {
      throw Error(str("step ", state().step, ": ", problem, ". The latest checkpoint is ", attempt_.latest().path,
                      ". Lower train.lr or raise train.warmup and start again"));
    }
    attempt_.event("evaluation_failed", {{"step", state().step}, {"problem", problem}});
    if (resources_.is_main()) message_line(str("step ", state().step, ": ", problem));
    return true;
  }
  reporter_->evaluation(results, seconds_since(begin));
  return true;
}

// Decoding needs whole parameters; from a tensor-parallel run `generate` samples from a checkpoint.
void Trainer::write_sample() {
  if (!resources_.is_main() || resources_.shape.tp > 1) return;
  const TrainConfig& t = config().train;
  const auto begin = Clock::now();
  const SampleContext context{.ops = *resources_.ops,
                              .config = config().model,
                              .table = step_->table(),
                              .params = params(),
                              .transpoints = resources_.plan.dims.transpoints,
                              .tokenizer = *resources_.data->tokenizer};
  const std::vector<int32_t> tokens = sample(context, t.sample_prompt,
                                             {.max_tokens = t.sample_tokens,
                                              .temperature = t.temperature,
                                              .top_k = 0,
                                              .seed = static_cast<uint64_t>(t.seed + state().step)},
                                             [this] { return stop_reason() != 0; });
  reporter_->sample(t.sample_prompt + resources_.data->tokenizer->decode(tokens), seconds_since(begin));
}

double Trainer::elapsed() const { return seconds_since(started_); }

// Heartbeats are files in the run directory, which all hosts see.
void Trainer::start_watchdog() {
  World& world = resources_.world;
  if (config().run.hang_timeout <= 0 || world.size() == 1) return;
  const fs::path heartbeats = attempt_.directory().dir() / "heartbeat";
  if (resources_.is_main()) fs::create_directories(heartbeats);
  world.comm().barrier();
  const LeaseId lease = attempt_.lease_id();
  const auto log = [lease](const HangReport& hang) {
    if (!is_current(lease)) return;
    RunDirectory::append_event(lease.run, "hang",
                               {{"ranks", hang.ranks}, {"operation", hang.operation}, {"problem", hang.text}});
  };
  world.start_watchdog({.timeout_seconds = config().run.hang_timeout, .folder = heartbeats, .on_hang = log});
}

// The last event of an attempt that an exception ends; without it the attempt would look killed.
void Trainer::log_failure(const std::string& problem) noexcept {
  if (!resources_.is_main()) return;
  try {
    const nlohmann::json details = {{"step", state().step}, {"problem", problem}};
    if (attempt_.has_directory()) {
      reporter_->end("failed", details);
    } else {
      attempt_.early_event("failed", details);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
}

}  // namespace tmamba
