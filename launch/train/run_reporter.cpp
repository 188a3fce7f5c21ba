#include "launch/train/run_reporter.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numbers>

#include "kernels/base/device.h"
#include "launch/cli/format.h"
#include "launch/cli/signals.h"
#include "launch/run/goodput.h"
#include "launch/train/op_profile.h"

namespace tmamba {

namespace {

using nlohmann::json;

long long ll(int64_t x) { return x; }
const char* plural(int64_t count) { return count == 1 ? "" : "s"; }

std::string points_text(const std::vector<int64_t>& transpoints) {
  constexpr size_t kMost = 16;
  std::string text;
  for (size_t i = 0; i < std::min(transpoints.size(), kMost); ++i) text += str(i > 0 ? " " : "", transpoints[i]);
  return transpoints.size() > kMost ? text + " ..." : text;
}

// Open MPI's mpirun takes INT, TERM and HUP for itself and kills the ranks a second later; it forwards USR1 to all of
// them.
void print_how_to_stop(const std::string& run) {
  const int64_t mpirun = open_mpi_launcher();
  if (mpirun == 0) return;
  std::printf(
      "to save and stop: touch %s/STOP, or kill -USR1 %lld; INT, TERM and HUP of mpirun kill the ranks after 1 s\n",
      run.c_str(), ll(mpirun));
}

double rounded_ms(double seconds) { return std::round(seconds * 1e6) / 1e3; }

}  // namespace

void RunReporter::header() const {
  if (!resources_.is_main()) return;
  const RunConfig& config = resources_.config;
  const ModelConfig& m = config.model;
  const MeshShape& shape = resources_.shape;
  const int64_t T = config.data.seq_len;
  const int threads = omp_get_max_threads();
  std::printf("TransMamba: %s parameters, d %lld, %lld heads of %lld, %lld layers, vocabulary %lld\n",
              count_text(static_cast<double>(step_.table().global_size())).c_str(), ll(m.dim), ll(m.heads),
              ll(m.head_dim()), ll(m.layers), ll(m.vocab));
  std::printf("TransPoints of %lld tokens: %s\n", ll(T), points_text(resources_.plan.dims.transpoints).c_str());
  if (shape.tp * shape.sp > 1) {
    std::printf("tensor parallel %d, sequence parallel %d (fold %d: %lld segments; %s)\n", shape.tp, shape.sp,
                resources_.plan.dims.fold, ll(std::ssize(step_.ranks().layout().segments())),
                transports_text(resources_.plan.transports).c_str());
  }
  if (config.run.canonical > 0) {
    std::printf("canonical: %lld units of %lld tokens; the same bits on every number of ranks\n",
                ll(config.run.canonical), ll(T / config.run.canonical));
  }
  std::printf(
      "%d data-parallel rank%s, %d thread%s each; %lld sequences a step, %lld at a time on a rank; %s per rank\n",
      shape.dp, plural(shape.dp), threads, plural(threads), ll(resources_.batch.sequences()),
      ll(resources_.batch.micro_batch), bytes_text(step_.memory_bytes()).c_str());
  std::printf("data: %s, %s tokens, %.2f bytes each; run directory: %s\n", config.data.train.c_str(),
              count_text(static_cast<double>(resources_.data->train.info().tokens)).c_str(),
              attempt_.state().bytes_per_token, config.run.dir.c_str());
  std::printf("MFU: %s%s\n", peak_.flops > 0 ? str(fixed(peak_.flops / 1e12, 1), " TFLOP/s per rank, ").c_str() : "",
              peak_.source.c_str());
  print_how_to_stop(config.run.dir);
  if (attempt_.state().step > 0) std::printf("resumed from step %lld\n", ll(attempt_.state().step));
  for (const std::string& warning : resources_.schedule->warnings()) {
    std::printf("warning: %s\n", warning.c_str());
    attempt_.event("warning", {{"step", attempt_.state().step}, {"problem", warning}});
  }
  std::fflush(stdout);
}

double RunReporter::bits_per_byte(double nats_per_token) const {
  return nats_per_token / std::numbers::ln2 / attempt_.state().bytes_per_token;
}

double RunReporter::step_tokens() const {
  return static_cast<double>(resources_.batch.sequences() * resources_.config.data.seq_len);
}

// Adds the time that saves kept training waiting since the previous line.
void RunReporter::add_stall(json& line) {
  const double stalled = saves_.stall_seconds() - logged_stall_seconds_;
  if (stalled <= 0) return;
  line["save_stall_ms"] = stalled * 1e3;
  logged_stall_seconds_ += stalled;
}

void RunReporter::metric(json line) {
  attempt_.keep_directory();
  add_stall(line);
  attempt_.directory().metric(std::move(line));
}

void RunReporter::end(const std::string& kind, json details) {
  attempt_.keep_directory();
  add_stall(details);
  attempt_.event(kind, details);
  attempt_.directory().write_goodput();
}

void RunReporter::step(const StepOutcome& outcome, double step_seconds, double elapsed) {
  const RunState& state = attempt_.state();
  const double tokens_per_s = step_tokens() / step_seconds;
  tokens_per_s_ = tokens_per_s_ == 0 ? tokens_per_s : 0.9 * tokens_per_s_ + 0.1 * tokens_per_s;
  json line = {{"step", state.step},
               {"loss", outcome.loss},
               {"bits_per_byte", bits_per_byte(outcome.loss)},
               {"grad_norm", outcome.grad_norm},
               {"lr", outcome.lr},
               {"tokens", state.tokens},
               {"tokens_per_s", tokens_per_s},
               {"step_ms", step_seconds * 1e3},
               {"gflops", step_.flops() / step_seconds / 1e9},
               {"memory_bytes", step_.memory_bytes()},
               {"data_ms", rounded_ms(outcome.times.data)},
               {"compute_ms", rounded_ms(outcome.times.compute)},
               {"agree_ms", rounded_ms(outcome.times.votes)},
               {"update_ms", rounded_ms(outcome.times.update)}};
  if (peak_.flops > 0) {
    const RunPlan& plan = resources_.plan;
    const double forward = model_flops(plan.costs, plan.dims) * static_cast<double>(resources_.batch.sequences());
    line["mfu"] = mfu(forward, step_seconds, resources_.world.size(), peak_);
  }
  if (!outcome.applied) {
    line["skipped"] = true;
    attempt_.event("skip", {{"step", state.step},
                            {"loss", str(outcome.loss)},
                            {"grad_norm", str(outcome.grad_norm)},
                            {"why", outcome.spike() ? "spike" : "not finite"}});
  }
  metric(line);
  const bool logged =
      state.step % resources_.config.run.log_every == 0 || state.step == resources_.schedule->total_steps();
  if (resources_.is_main() && (logged || !outcome.applied)) print_step(outcome, elapsed);
}

// At most 80 columns of a run of 99,999 steps.
void RunReporter::print_step(const StepOutcome& outcome, double elapsed) const {
  const int64_t step = attempt_.state().step, total = resources_.schedule->total_steps();
  const double minutes = resources_.config.train.minutes;
  double eta = static_cast<double>(total - step) * step_tokens() / tokens_per_s_;
  if (minutes > 0) eta = std::min(eta, 60 * minutes - elapsed);
  const char* skipped = outcome.applied ? "" : outcome.spike() ? " SKIPPED: a spike" : " SKIPPED: not finite";
  message_line(str("step ", step, "/", total, " loss ", fixed(outcome.loss, 4), " bpb ",
                   fixed(bits_per_byte(outcome.loss), 3), " norm ", fixed(outcome.grad_norm, 2), " lr ",
                   scientific(outcome.lr, 1), " ", count_text(tokens_per_s_), " tok/s ETA ",
                   eta < 3600 ? duration(eta) : str(fixed(eta / 3600, 0), "h"), skipped));
}

void RunReporter::memory() {
  if (resources_.ops->device() != Device::cuda) return;
  const size_t before = resources_.free_device_bytes, free = device_memory(Device::cuda).free;
  attempt_.event("memory",
                 {{"planned_bytes", step_.memory_bytes()}, {"used_bytes", before > free ? before - free : 0}});
}

void RunReporter::evaluation(const std::vector<EvalResult>& results, double seconds) {
  const int64_t step = attempt_.state().step;
  const std::vector<ValidationFile>& sets = resources_.data->valid;
  valid_bits_per_byte_ = results.front().bits_per_byte();
  json line = {{"step", step}, {"valid_tokens", results.front().tokens}, {"eval_s", seconds}};
  for (size_t i = 0; i < results.size(); ++i) line.update(valid_metrics(results[i], sets[i].name, i == 0));
  metric(line);
  for (size_t i = 0; i < results.size() && resources_.is_main(); ++i) {
    message_line(str("step ", step, ": ", i == 0 ? "" : sets[i].name + ": ", "held-out loss ",
                     fixed(results[i].loss(), 4), ", ", fixed(results[i].bits_per_byte(), 3), " bits/byte over ",
                     count_text(static_cast<double>(results[i].bytes)), " bytes"));
  }
}

void RunReporter::sample(const std::string& text, double seconds) {
  const int64_t step = attempt_.state().step;
  attempt_.directory().sample(step, text);
  metric({{"step", step}, {"sample_s", seconds}});
  message_line(str("step ", step, ": sample\n", indent(text)));
}

void RunReporter::write_summary(const RunProfile& profile, bool time_up) {
  const RunState& state = attempt_.state();
  json summary = {{"steps", state.step},
                  {"tokens", state.tokens},
                  {"seconds", state.seconds},
                  {"tokens_per_s", state.seconds > 0 ? static_cast<double>(state.tokens) / state.seconds : 0},
                  {"skipped", state.skipped},
                  {"checkpoint", attempt_.latest().path}};
  if (time_up) {
    const std::string why = stopped_by_minutes(state.step, resources_.schedule->total_steps());
    summary["stopped_by"] = "train.minutes";
    summary["total_steps"] = resources_.schedule->total_steps();
    if (resources_.is_main()) message_line(why + "; start the same command again to continue");
  }
  if (!resources_.data->valid.empty()) summary["valid_bits_per_byte"] = valid_bits_per_byte_;
  profile.add_to(summary, state.step);
  attempt_.directory().write_summary(summary);
}

void RunReporter::print_summary(const std::vector<std::string>& compare, bool as_json) const {
  const RunDirectory& directory = attempt_.directory();
  const json summary = directory.read_summary();
  if (as_json) {
    std::printf("%s\n", summary.dump(2).c_str());
    return;
  }
  try {
    print_table(summary, compare);
  } catch (const json::exception&) {
    throw UserError(str((directory.dir() / "summary.json").string(),
                        ": a value is missing or not a number; delete it and start the run again"));
  }
}

void RunReporter::print_table(const json& summary, const std::vector<std::string>& compare) const {
  const RunDirectory& directory = attempt_.directory();
  const auto row = [](const std::string& name, const std::string& value) {
    std::printf("  %-28s %s\n", name.c_str(), value.c_str());
  };
  std::printf("\n");
  if (summary.contains("valid_bits_per_byte"))
    row("held-out bits/byte", fixed(summary["valid_bits_per_byte"].get<double>(), 3));
  for (const std::string& other : compare) {
    const size_t equals = other.rfind('=');
    row(other.substr(0, equals), equals == std::string::npos ? "" : other.substr(equals + 1));
  }
  if (summary.contains("stopped_by")) {
    row("ended", stopped_by_minutes(summary["steps"].get<int64_t>(), summary["total_steps"].get<int64_t>()));
  }
  row("steps, tokens", str(summary["steps"].get<int64_t>(), ", ", count_text(summary["tokens"].get<double>())));
  row("training time", duration(summary["seconds"].get<double>()));
  row("tokens/s", count_text(summary["tokens_per_s"].get<double>()));
  row("time", directory.time_text());
  row("checkpoint", summary["checkpoint"].get<std::string>());
  row("metrics", (directory.dir() / "metrics.jsonl").string());
  row("samples", (directory.dir() / "samples.txt").string());
  if (summary.contains("comm")) std::printf("\n%s", comm_table(summary["comm"]).c_str());
  if (summary.contains("ops")) std::printf("\nOps of rank 0\n%s", op_table(summary["ops"]).c_str());
}

}  // namespace tmamba
