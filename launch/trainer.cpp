#include "launch/trainer.h"

#include <omp.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include "dist/device_world.h"
#include "launch/devices.h"
#include "launch/kernel_choices.h"
#include "launch/loaded_model.h"
#include "launch/memory_check.h"
#include "launch/progress.h"
#include "launch/replica_check.h"
#include "launch/sampler.h"

namespace tmamba {

Trainer::Trainer(RunConfig config, World& world)
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
  open_data();
  plan_ = agree_plan(config_, shape_, world_.comm());
  ops_ = training_ops(config_, world_, micro_batches_);
  mesh_ = std::make_unique<Mesh>(*make_device_communicator(world_, ops_->device()), shape_);
  require_memory(config_, plan_, ops_->device(), world_);
  plan_memory();
  resume_or_initialize();
  if (config_.run.measure_kernels) {
    settle_kernel_choices(*ops_, world_.comm(), config_.run.dir, [this] { rehearse(); });
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

void Trainer::resume_or_initialize() {
  const bool resumed = load_newest();
  if (!resumed) initialize_run(*ops_, *table_, static_cast<uint64_t>(config_.train.seed), params_, *optimizer_);
  folder_ = std::make_unique<RunFolder>(config_.run.dir, state_.step, main_);
  state_.config = to_toml(config_);
  state_.tokenizer_hash = train_file_->info().tokenizer_hash;
  state_.bytes_per_token =
      static_cast<double>(train_file_->info().source_bytes) / static_cast<double>(train_file_->info().tokens);
  folder_->write_config(state_.config);
  if (main_) folder_->write_plan(plan_to_json(make_plan(plan_.dims, plan_.transports)));
  start_profile();
  folder_->event(resumed ? "resume" : "start", {{"step", state_.step}, {"ranks", world_.size()}});
}

// Heartbeats lie in the run folder, which all hosts see.
void Trainer::start_watchdog() {
  if (config_.run.hang_timeout <= 0 || world_.size() == 1) return;
  const std::filesystem::path folder = folder_->dir() / "heartbeat";
  if (main_) std::filesystem::create_directories(folder);
  world_.comm().barrier();
  world_.start_watchdog({.timeout_seconds = config_.run.hang_timeout, .folder = folder});
}

int Trainer::run() {
  print_header();
  if (state_.step >= total_steps_) {
    if (main_) std::printf("all %lld steps of this run are done\n", static_cast<long long>(total_steps_));
    // A run that ended between its last checkpoint and its summary gets the summary now.
    if (broadcast_text(world_.comm(), main_ && folder_->has_summary() ? "yes" : "").empty()) finish();
    return kDone;
  }
  if (starts_in_vain()) return kNoProgress;
  prepare_saving();
  const double seconds_before = state_.seconds;
  started_ = Clock::now();
  bool out_of_time = false;
  while (state_.step < total_steps_ && !out_of_time) {
    const auto begin = Clock::now();
    const StepResult result = next_step();
    state_.seconds = seconds_before + elapsed();
    finish_step(result, std::chrono::duration<double>(Clock::now() - begin).count());
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
    if (comm_profile_) comm_profile_->end_step(result.skipped);
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
    check_replicas(world_.comm(), shape_, world_.hosts(), *table_, params_, state_.step);
  }
}

StepResult Trainer::train_step(int64_t step) {
  const int64_t B = micro_batch_, T = config_.data.seq_len, n = ranks_->local_tokens(), per_rank = B * micro_batches_;
  const Tensor tokens_2Bn = token_buffer_.tensor({2, B, n}, DType::i32),
               host_2Bn = host_tokens_.tensor({2, B, n}, DType::i32);
  const Tensor sums_3 = sum_buffer_.tensor({3}, DType::f64);
  const double grad_scale = 1.0 / static_cast<double>(config_.train.global_batch * T);
  Ops& ops = timed_ops_ ? *timed_ops_ : *ops_;
  ops.fill(grads_, 0);
  ops.fill(sums_3, 0);
  reducer_->begin_step();
  for (int64_t micro = 0; micro < micro_batches_; ++micro) {
    const int64_t first =
        (step - 1) * config_.train.global_batch + state_.passed_over + mesh_->coordinates().dp * per_rank + micro * B;
    const Batch batch = loader_->load(first, B);
    // Where every micro-batch is summed over the ranks at once, the next one starts from zero.
    if (micro > 0 && reduces(micro - 1)) ops.fill(grads_, 0);
    // Targets are shifted by one before sequences are cut: a cut needs nothing of the next rank.
    ranks_->shard(host_2Bn.select(0, 0), batch.tokens_BT);
    ranks_->shard(host_2Bn.select(0, 1), batch.targets_BT);
    copy_blocking(tokens_2Bn, host_2Bn);
    model_->forward_backward(ops, scratch_, params_, grads_, {tokens_2Bn.select(0, 0), tokens_2Bn.select(0, 1)},
                             grad_scale,
                             {.loss_1 = sums_3.slice(0, 0, 1), .count_1 = sums_3.slice(0, 1, 1), .loss_N = {}},
                             [&](int bucket) { reduce_bucket(bucket, micro); });
    if (reduces(micro)) reducer_->finish();
  }
  const std::vector<ConstTensor> gradients = counted_gradients();
  ops.sum_squares(sums_3.slice(0, 2, 1), gradients);
  ops.synchronize();

  // One small message decides for all ranks alike: the loss, the gradient's norm, who wants to stop or to save.
  double sums[kAgreedNumbers] = {};
  copy_blocking(Tensor(sums, {3}, DType::f64), sums_3);
  if (mesh_->coordinates().tp != 0)
    sums[kLoss] = sums[kCount] = 0;  // all tensor-parallel ranks have the loss of the tokens they share
  sums[kTimeUp] = config_.train.minutes > 0 && elapsed() > 60 * config_.train.minutes;
  sums[kStop] = stop_reason() != 0;
  sums[kSave] = wants_save();
  sums[kReady] = saver_ && saver_->in_flight() && saver_->ready();
  world_.comm().all_reduce(Tensor(sums, {kAgreedNumbers}, DType::f64), ReduceOp::sum).wait();
  const double grad_norm = std::sqrt(sums[kSquares]);
  StepResult result{.loss = sums[kLoss] / sums[kCount],
                    .grad_norm = grad_norm,
                    .lr = lr_schedule().at(step),
                    .skipped = false,
                    .spike = false,
                    .time_up = sums[kTimeUp] > 0,
                    .stop = sums[kStop] > 0,
                    .save = sums[kSave] > 0,
                    .saved_part = sums[kReady] == world_.size()};
  const bool finite = std::isfinite(result.loss) && std::isfinite(grad_norm);
  result.spike = finite && guard_.spike(result.loss, grad_norm);
  result.skipped = !finite || result.spike;
  if (result.skipped) return result;
  guard_.took(result.loss, grad_norm);
  const TrainConfig& t = config_.train;
  const double clip = t.clip > 0 && grad_norm > t.clip ? t.clip / grad_norm : 1.0;
  optimizer_->step(ops, params_, gradients_,
                   adamw_step(step - state_.skipped, result.lr, t.betas[0], t.betas[1], t.eps, t.weight_decay, clip));
  reducer_->gather_parameters(params_);
  return result;
}

// Gradients are summed over ranks after the last micro-batch, or after every one where each keeps only its own
// (ZeRO-2).
bool Trainer::reduces(int64_t micro) const { return micro + 1 == micro_batches_ || reducer_->stage() == 2; }

void Trainer::reduce_bucket(int bucket, int64_t micro) {
  if (!reduces(micro)) return;
  const Slice range = reducer_->bucket_range(bucket);
  reducer_->start(bucket, grads_.slice(0, range.begin, range.count));
}

// The gradients whose squares this rank adds to the global norm: together the ranks count every element once.
std::vector<ConstTensor> Trainer::counted_gradients() const {
  std::vector<ConstTensor> counted;
  const bool copies_others = reducer_->stage() == 0 && shape_.zero_rank(mesh_->coordinates()) > 0;
  for (size_t i = 0; i < gradients_.size() && !copies_others; ++i) {
    const bool replicated = optimizer_->owned()[i].parameter->shard == Shard::none;
    if (!replicated || mesh_->coordinates().tp == 0) counted.push_back(gradients_[i]);
  }
  return counted;
}

LearningRate Trainer::lr_schedule() const {
  return {.peak = config_.train.lr, .min = config_.train.min_lr, .warmup = config_.train.warmup, .steps = total_steps_};
}

void Trainer::evaluate_and_log(bool full) {
  if (!valid_file_) return;
  const auto begin = Clock::now();
  const EvalResult result = evaluate(*ops_, scratch_, *model_, *ranks_, params_, *valid_file_,
                                     full ? 0 : config_.train.eval_sequences, *mesh_, world_.comm());
  last_valid_bits_ = result.bits_per_byte();
  folder_->metric({{"step", state_.step},
                   {"valid_loss", result.loss()},
                   {"valid_bits_per_byte", last_valid_bits_},
                   {"valid_tokens", result.tokens},
                   {"eval_s", std::chrono::duration<double>(Clock::now() - begin).count()}});
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
  const std::vector<int32_t> tokens =
      sample(*ops_, config_.model, *table_, params_, transpoints_, *tokenizer_, prompt, options);
  const std::string text = prompt + tokenizer_->decode(tokens);
  folder_->sample(state_.step, text);
  message_line(str("step ", state_.step, ": sample\n", indent(text)));
}

void Trainer::finish() {
  save_now();
  evaluate_and_log(true);
  write_sample();
  const double tokens_per_s = static_cast<double>(state_.tokens) / state_.seconds;
  folder_->event("done", {{"step", state_.step}, {"tokens", state_.tokens}});
  nlohmann::json summary = {{"steps", state_.step},      {"tokens", state_.tokens},
                            {"seconds", state_.seconds}, {"tokens_per_s", tokens_per_s},
                            {"skipped", state_.skipped}, {"checkpoint", last_checkpoint_}};
  if (valid_file_) summary["valid_bits_per_byte"] = last_valid_bits_;
  add_profile(summary);
  folder_->write_summary(summary);
  if (progress_) progress_->moved_on();
}

}  // namespace tmamba
