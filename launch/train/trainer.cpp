#include "launch/train/trainer.h"

#include <omp.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include "dist/comm/collective_guard.h"
#include "dist/world/device_world.h"
#include "kernels/base/device.h"
#include "launch/cli/format.h"
#include "launch/eval/loaded_model.h"
#include "launch/eval/sampler.h"
#include "launch/plan/memory_check.h"
#include "launch/state/devices.h"
#include "launch/train/kernel_choices.h"
#include "launch/train/replica_check.h"

namespace tmamba {

// Ends before anything is allocated, and has found what can be wrong by then.
Trainer::Trainer(RunConfig config, World& world, Checks)
    : config_(std::move(config)),
      world_(world),
      shape_(mesh_shape(config_.parallel.tp, config_.parallel.sp, config_.parallel.dp, world.size())),
      main_(world.rank() == 0),
      save_interval_(config_.checkpoint.mtbf_hours),
      guard_(config_.train.spike_window, config_.train.spike_sigmas),
      started_(Clock::now()) {
  validate(config_);
  const int threads = config_.run.threads > 0
                          ? static_cast<int>(config_.run.threads)
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / world.local_size());
  omp_set_num_threads(threads);
  CollectiveGuard(world_.comm()).on_root([&] { RunDirectory::require_usable(config_.run.dir); });
  open_data();
  plan_ = agree_plan(config_, shape_, world_.comm());
  ops_ = training_ops(config_, world_, micro_batches_);
  all_ = make_device_communicator(world_, ops_->device(), ops_->native_stream());
  mesh_ = std::make_unique<Mesh>(*all_, shape_);
  require_memory(config_, plan_, ops_->device(), world_);
  if (ops_->device() == Device::cuda) free_before_ = device_memory(Device::cuda).free;
}

Trainer::Trainer(RunConfig config, World& world) : Trainer(std::move(config), world, Checks{}) {
  try {
    const auto newest = begin_start();
    make_step();
    resume_or_initialize(newest);
    if (config_.run.measure_kernels) {
      settle_kernel_choices(*ops_, world_.comm(), config_.run.dir, [this] { step_->rehearse(); });
    }
  } catch (const UserError&) {  // leaves the folder as it is
    throw;
  } catch (const ExitError&) {  // has told, or the folder is another's
    throw;
  } catch (const std::exception& error) {
    log_failure(error.what());
    throw;
  }
}

void Trainer::open_data() {
  train_file_ = std::make_unique<TokenFile>(config_.data.train);
  const TokenFileInfo& info = train_file_->info();
  if (!config_.data.valid.empty()) {
    valid_file_ = std::make_unique<TokenFile>(config_.data.valid);
    if (valid_file_->info().tokenizer_hash != info.tokenizer_hash) {
      throw UserError(str("data.valid = ", config_.data.valid, " was made with another tokenizer than data.train = ",
                          config_.data.train, "; prepare both together"));
    }
  }
  tokenizer_ = load_tokenizer_of(*train_file_, config_.data.tokenizer);
  ModelConfig& model = config_.model;
  if (model.vocab == 0) model.vocab = info.vocab_size;
  if (model.vocab < info.vocab_size) {
    throw UserError(str("model.vocab = ", model.vocab, ", but ", config_.data.train, " has a vocabulary of ",
                        info.vocab_size, "; raise model.vocab, or set it to 0 to take the tokenizer's"));
  }
  loader_ = std::make_unique<Loader>(*train_file_, config_.data.seq_len, static_cast<uint64_t>(config_.data.seed));

  const int64_t per_rank = config_.train.global_batch / shape_.dp;
  if (per_rank * shape_.dp != config_.train.global_batch) {
    throw UserError(str("train.global_batch = ", config_.train.global_batch, " is not divisible by the ", shape_.dp,
                        " data-parallel ranks"));
  }
  const int64_t micro = config_.train.micro_batch > 0 ? config_.train.micro_batch : per_rank;
  if (per_rank % micro != 0) {
    throw UserError(str("train.micro_batch = ", micro, " does not divide the ", per_rank, " sequences of each of ",
                        shape_.dp, " data-parallel ranks (train.global_batch = ", config_.train.global_batch, ")"));
  }
  micro_batches_ = per_rank / micro;
  micro_batch_ = micro;
  const int64_t step_tokens = config_.train.global_batch * config_.data.seq_len;
  total_steps_ = config_.train.steps > 0 ? config_.train.steps : ceil_div(config_.train.tokens, step_tokens);
}

int Trainer::run() {
  try {
    return train();
  } catch (const ExitError&) {  // the folder is another's
    throw;
  } catch (const std::exception& error) {
    log_failure(error.what());
    throw;
  }
}

int Trainer::train() {
  print_header();
  if (state_.step >= total_steps_) {
    if (main_) std::printf("all %lld steps of this run are done\n", static_cast<long long>(total_steps_));
    // A run that ended between its last checkpoint and its summary gets the summary now.
    if (broadcast_text(world_.comm(), main_ && folder_->has_summary() ? "yes" : "").empty()) finish();
    switch_off_stop();
    progress_->moved_on();
    return kDone;
  }
  prepare_saving();
  const double seconds_before = state_.seconds;
  started_ = Clock::now();
  bool out_of_time = false;
  while (state_.step < total_steps_ && !out_of_time) {
    const auto begin = Clock::now();
    const StepResult result = next_step();
    state_.seconds = seconds_before + elapsed();
    finish_step(result, seconds_since(begin));
    if (++steps_here_ == 2) log_memory();
    if (skips_in_a_row_ >= config_.train.max_skips) {
      go_back();
      continue;
    }
    const bool end = state_.step == total_steps_;
    if (result.stop && !end) return stop_and_requeue();
    out_of_time = result.time_up;
    if (due(config_.train.eval_every) && !end) evaluate_and_log(false);
    if (due(config_.train.sample_every) && !end) write_sample();
    // Not while steps are being skipped: what is on disk is then as good, and maybe better.
    if ((due(config_.checkpoint.every.steps) || result.save) && !end && skips_in_a_row_ == 0) {
      save(config_.checkpoint.async);
    }
  }
  finish();
  return kDone;
}

// The next step, computed again where its first result is not finite: what a device got wrong once is then right, and
// the run has the bits of one in which nothing was wrong. Data and weights that are bad give the same again.
StepResult Trainer::next_step() {
  const auto attempt = [&] {
    if (comm_profile_) comm_profile_->begin_step();
    const StepResult result = train_step(state_.step + 1);
    if (comm_profile_) comm_profile_->end_step();
    return result;
  };
  const StepResult first = attempt();
  if (!first.skipped || first.spike || skips_in_a_row_ > 0) return first;
  const StepResult second = attempt();
  folder_->event("computed_again", {{"step", state_.step + 1}, {"finite", !second.skipped || second.spike}});
  return second;
}

// What follows a step on every rank, whatever became of it.
void Trainer::finish_step(const StepResult& result, double step_seconds) {
  ++state_.step;
  state_.tokens += config_.train.global_batch * config_.data.seq_len;
  skips_in_a_row_ = result.skipped ? skips_in_a_row_ + 1 : 0;
  state_.skipped += result.skipped;
  save_interval_.step(step_seconds, saver_->in_flight());
  log_step(result, step_seconds);
  if (result.saved_part) {
    if (const auto outcome = saver_->advance()) report_save(*outcome);
  }
  if (due(config_.train.replica_check_every)) {
    check_replicas(world_.comm(), shape_, world_.hosts(), step_->table(), params(), state_.step);
  }
}

// Everything of the device is allocated here, once.
void Trainer::make_step() {
  transpoints_ = transpoints(config_.model.schedule, config_.model.layers, config_.data.seq_len);
  const TrainConfig& t = config_.train;
  const StepRanks ranks{.tp = mesh_->tp(),
                        .sp = mesh_->sp(),
                        .zero = mesh_->zero(),
                        .all = *all_,
                        .shape = shape_,
                        .at = mesh_->coordinates()};
  const StepOptions options{
      .micro_batches = micro_batches_, .global_sequences = t.global_batch, .record = config_.run.graph};
  step_ = std::make_unique<TrainingStep>(config_, plan_, ranks, options, *ops_);
}

StepResult Trainer::train_step(int64_t step) {
  const int64_t B = micro_batch_, per_rank = B * micro_batches_;
  const auto load = [&](int64_t micro, const Tensor& tokens_Bn, const Tensor& targets_Bn) {
    const int64_t first =
        (step - 1) * config_.train.global_batch + state_.passed_over + mesh_->coordinates().dp * per_rank + micro * B;
    const Batch batch = loader_->load(first, B);
    // Targets are shifted by one before sequences are cut: a cut needs nothing of the next rank.
    step_->ranks().shard(tokens_Bn, batch.tokens_BT);
    step_->ranks().shard(targets_Bn, batch.targets_BT);
  };
  const auto wishes = [&] {
    StepWishes own{};
    own[kTimeUp] = config_.train.minutes > 0 && elapsed() > 60 * config_.train.minutes;
    own[kStop] = stop_reason() != 0;
    own[kSave] = wants_save();
    own[kReady] = saver_ && saver_->in_flight() && saver_->ready();
    return own;
  };
  const StepOrders orders{.number = step - state_.skipped, .lr = lr_schedule().at(step), .limits = limits()};
  const StepOutcome outcome = step_->run(timed_ops_ ? *timed_ops_ : *ops_, orders, load, wishes);
  if (outcome.applied) guard_.took(outcome.loss, outcome.grad_norm);
  return {.loss = outcome.loss,
          .grad_norm = outcome.grad_norm,
          .lr = orders.lr,
          .skipped = !outcome.applied,
          .spike = !outcome.applied && std::isfinite(outcome.loss) && std::isfinite(outcome.grad_norm),
          .time_up = outcome.wishes[kTimeUp] > 0,
          .stop = outcome.wishes[kStop] > 0,
          .save = outcome.wishes[kSave] > 0,
          .saved_part = outcome.wishes[kReady] == world_.size(),
          .times = outcome.times};
}

StepLimits Trainer::limits() const {
  const SpikeGuard::Limits most = guard_.limits();
  return {.clip = config_.train.clip, .max_loss = most.loss, .max_grad_norm = most.grad_norm};
}

LearningRate Trainer::lr_schedule() const {
  return {.peak = config_.train.lr, .min = config_.train.min_lr, .warmup = config_.train.warmup, .steps = total_steps_};
}

void Trainer::evaluate_and_log(bool full) {
  if (!valid_file_) return;
  const auto begin = Clock::now();
  const EvalResult result = evaluate(*ops_, step_->scratch(), step_->model(), step_->ranks(), params(), *valid_file_,
                                     full ? 0 : config_.train.eval_sequences, *mesh_, world_.comm());
  last_valid_bits_ = result.bits_per_byte();
  log_metric({{"step", state_.step},
              {"valid_loss", result.loss()},
              {"valid_bits_per_byte", last_valid_bits_},
              {"valid_tokens", result.tokens},
              {"eval_s", seconds_since(begin)}});
  if (main_)
    message_line(str("step ", state_.step, ": held-out loss ", fixed(result.loss(), 4), ", ",
                     fixed(last_valid_bits_, 3), " bits/byte over ", count_text(static_cast<double>(result.bytes)),
                     " bytes"));
}

void Trainer::write_sample() {
  // Decoding takes whole parameters; of a tensor-parallel run `generate` makes text from a checkpoint.
  if (!main_ || shape_.tp > 1) return;
  const SampleOptions options{.max_tokens = config_.train.sample_tokens,
                              .temperature = config_.train.temperature,
                              .top_k = 0,
                              .seed = static_cast<uint64_t>(config_.train.seed + state_.step)};
  const std::string& prompt = config_.train.sample_prompt;
  const auto begin = Clock::now();
  const std::vector<int32_t> tokens =
      sample(*ops_, config_.model, step_->table(), params(), transpoints_, *tokenizer_, prompt, options);
  const std::string text = prompt + tokenizer_->decode(tokens);
  folder_->sample(state_.step, text);
  log_metric({{"step", state_.step}, {"sample_s", seconds_since(begin)}});
  message_line(str("step ", state_.step, ": sample\n", indent(text)));
}

void Trainer::finish() {
  save_now();
  evaluate_and_log(true);
  write_sample();
  const double tokens_per_s = static_cast<double>(state_.tokens) / state_.seconds;
  log_end("done", {{"step", state_.step}, {"tokens", state_.tokens}});
  nlohmann::json summary = {{"steps", state_.step},      {"tokens", state_.tokens},
                            {"seconds", state_.seconds}, {"tokens_per_s", tokens_per_s},
                            {"skipped", state_.skipped}, {"checkpoint", last_checkpoint_}};
  if (valid_file_) summary["valid_bits_per_byte"] = last_valid_bits_;
  add_profile(summary);
  folder_->write_summary(summary);
  switch_off_stop();
  progress_->moved_on();
}

}  // namespace tmamba
