// Trainer: what a run says of itself: its header, a line a step, its summary.
#include <omp.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numbers>

#include "kernels/base/device.h"
#include "launch/cli/format.h"
#include "launch/cli/signals.h"
#include "launch/state/sharding.h"
#include "launch/train/op_profile.h"
#include "launch/train/trainer.h"

namespace tmamba {

namespace {

// Open MPI's mpirun takes INT and TERM for itself and kills the ranks a second later; USR1 it hands on to them all.
void print_how_to_stop(const std::string& run) {
  const int64_t mpirun = open_mpi_launcher();
  if (mpirun == 0) return;
  std::printf("to save and stop: touch %s/STOP, or kill -USR1 %lld; INT and TERM of mpirun kill the ranks after 1 s\n",
              run.c_str(), static_cast<long long>(mpirun));
}

}  // namespace

void Trainer::print_header() const {
  if (!main_) return;
  const ModelConfig& m = config_.model;
  std::string points;
  for (size_t i = 0; i < transpoints_.size() && i < 16; ++i) points += (i ? " " : "") + std::to_string(transpoints_[i]);
  if (transpoints_.size() > 16) points += " ...";
  std::printf("TransMamba: %s parameters, d %lld, %lld heads of %lld, %lld layers, vocabulary %lld\n",
              count_text(static_cast<double>(step_->table().global_size())).c_str(), static_cast<long long>(m.dim),
              static_cast<long long>(m.heads), static_cast<long long>(m.head_dim()), static_cast<long long>(m.layers),
              static_cast<long long>(m.vocab));
  std::printf("TransPoints of %lld tokens: %s\n", static_cast<long long>(config_.data.seq_len), points.c_str());
  if (shape_.tp * shape_.sp > 1) {
    std::printf("tensor parallel %d, sequence parallel %d (fold %d: %lld segments; %s)\n", shape_.tp, shape_.sp,
                plan_.dims.fold, static_cast<long long>(step_->ranks().layout().segments().size()),
                transports_text(plan_.transports).c_str());
  }
  if (config_.run.canonical > 0) {
    std::printf("canonical: %lld units of %lld tokens; the same bits on every number of ranks\n",
                static_cast<long long>(config_.run.canonical),
                static_cast<long long>(config_.data.seq_len / config_.run.canonical));
  }
  std::printf(
      "%d data-parallel rank%s, %d thread%s each; %lld sequences a step, %lld at a time on a rank; %s per rank\n",
      shape_.dp, shape_.dp == 1 ? "" : "s", omp_get_max_threads(), omp_get_max_threads() == 1 ? "" : "s",
      static_cast<long long>(config_.train.global_batch), static_cast<long long>(micro_batch_),
      bytes_text(step_->memory_bytes()).c_str());
  std::printf("data: %s, %s tokens, %.2f bytes each; run folder: %s\n", config_.data.train.c_str(),
              count_text(static_cast<double>(train_file_->info().tokens)).c_str(), state_.bytes_per_token,
              config_.run.dir.c_str());
  print_how_to_stop(config_.run.dir);
  if (state_.step > 0) std::printf("resumed from step %lld\n", static_cast<long long>(state_.step));
  std::fflush(stdout);
}

// The time that saves kept training waiting since the line before.
void Trainer::add_stall(nlohmann::json& line) {
  const double stalled = saver_ ? saver_->total_stall_seconds() - logged_stall_seconds_ : 0;
  if (stalled <= 0) return;
  line["save_stall_ms"] = stalled * 1e3;
  logged_stall_seconds_ += stalled;
}

void Trainer::log_metric(nlohmann::json line) {
  keep_folder();
  add_stall(line);
  folder_->metric(std::move(line));
}

// The last event of a start that ends as it should.
void Trainer::log_end(const std::string& kind, nlohmann::json details) {
  keep_folder();
  add_stall(details);
  folder_->event(kind, details);
  folder_->write_goodput();
}

void Trainer::log_step(const StepResult& result, double step_seconds) {
  const double step_tokens = static_cast<double>(config_.train.global_batch * config_.data.seq_len);
  const double tokens_per_s = step_tokens / step_seconds;
  recent_tokens_per_s_ = recent_tokens_per_s_ == 0 ? tokens_per_s : 0.9 * recent_tokens_per_s_ + 0.1 * tokens_per_s;
  const double bits = result.loss / std::numbers::ln2 / state_.bytes_per_token;
  nlohmann::json line = {{"step", state_.step},
                         {"loss", result.loss},
                         {"bits_per_byte", bits},
                         {"grad_norm", result.grad_norm},
                         {"lr", result.lr},
                         {"tokens", state_.tokens},
                         {"tokens_per_s", tokens_per_s},
                         {"step_ms", step_seconds * 1e3},
                         {"gflops", step_->flops() / step_seconds / 1e9},
                         {"memory_bytes", step_->memory_bytes()}};
  const StepTimes& times = result.times;
  for (const auto& [name, seconds] : {std::pair{"data_ms", times.data},
                                      {"compute_ms", times.compute},
                                      {"agree_ms", times.agree},
                                      {"update_ms", times.update}}) {
    line[name] = std::round(seconds * 1e6) / 1e3;
  }
  if (result.skipped) {
    line["skipped"] = true;
    folder_->event("skip", {{"step", state_.step},
                            {"loss", str(result.loss)},
                            {"grad_norm", str(result.grad_norm)},
                            {"why", result.spike ? "spike" : "not finite"}});
  }
  log_metric(line);
  if (!main_ || (state_.step % config_.run.log_every != 0 && !result.skipped && state_.step != total_steps_)) return;
  double eta = static_cast<double>(total_steps_ - state_.step) * step_tokens / recent_tokens_per_s_;
  if (config_.train.minutes > 0) eta = std::min(eta, 60 * config_.train.minutes - elapsed());
  // At most 80 columns of a run of 99,999 steps.
  message_line(str("step ", state_.step, "/", total_steps_, " loss ", fixed(result.loss, 4), " bpb ", fixed(bits, 3),
                   " norm ", fixed(result.grad_norm, 2), " lr ", scientific(result.lr, 1), " ",
                   count_text(recent_tokens_per_s_), " tok/s ETA ",
                   eta < 3600 ? duration(eta) : str(fixed(eta / 3600, 0), "h"),
                   result.spike     ? " SKIPPED: a spike"
                   : result.skipped ? " SKIPPED: not finite"
                                    : ""));
}

// By the second step every kernel has its workspace, and steps are recorded.
void Trainer::log_memory() {
  if (ops_->device() != Device::cuda) return;
  const size_t free = device_memory(Device::cuda).free;
  folder_->event("memory", {{"planned_bytes", step_->memory_bytes()},
                            {"used_bytes", free_before_ > free ? free_before_ - free : 0}});
}

void Trainer::start_profile() {
  profiled_from_ = state_.step;
  if (config_.run.profile == "ops") timed_ops_ = make_timed_ops(*ops_);
  if (config_.run.profile != "comm") return;
  const Plan plan = make_plan(plan_.dims, plan_.transports);
  const int64_t rows = step_->ranks().batch() * step_->ranks().local_tokens();
  comm_profile_ = std::make_unique<CommProfile>(
      *mesh_, *all_,
      planned_traffic(plan, reduction_buckets(step_->table(), config_.train.optimizer), *mesh_,
                      head_chunk_rows(rows, config_.model.dim, config_.model.vocab), TrainingStep::agreed_bytes()));
}

void Trainer::add_profile(nlohmann::json& summary) const {
  const int64_t steps = state_.step - profiled_from_;
  if (steps == 0) return;
  if (comm_profile_) summary["comm"] = comm_profile_->summary(world_.comm());
  if (timed_ops_) summary["ops"] = op_rows(*timed_ops_, steps);
}

void Trainer::print_summary(const std::vector<std::string>& compare, bool as_json) const {
  const nlohmann::json summary = folder_->read_summary();
  if (as_json) {
    std::printf("%s\n", summary.dump(2).c_str());
    return;
  }
  auto row = [](const std::string& name, const std::string& value) {
    std::printf("  %-28s %s\n", name.c_str(), value.c_str());
  };
  std::printf("\n");
  if (summary.contains("valid_bits_per_byte"))
    row("held-out bits/byte", fixed(summary["valid_bits_per_byte"].get<double>(), 3));
  for (const std::string& other : compare) {
    const size_t equals = other.rfind('=');
    row(other.substr(0, equals), equals == std::string::npos ? "" : other.substr(equals + 1));
  }
  row("steps, tokens", str(summary["steps"].get<int64_t>(), ", ", count_text(summary["tokens"].get<double>())));
  row("training time", duration(summary["seconds"].get<double>()));
  row("tokens/s", count_text(summary["tokens_per_s"].get<double>()));
  row("time", folder_->time_text());
  row("checkpoint", summary["checkpoint"].get<std::string>());
  row("metrics", (folder_->dir() / "metrics.jsonl").string());
  row("samples", (folder_->dir() / "samples.txt").string());
  if (summary.contains("comm")) std::printf("\n%s", comm_table(summary["comm"]).c_str());
  if (summary.contains("ops")) std::printf("\nOps of rank 0\n%s", op_table(summary["ops"]).c_str());
}

}  // namespace tmamba
