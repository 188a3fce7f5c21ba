#include "launch/run/prometheus.h"

#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"
#include "kernels/base/clock.h"
#include "launch/cli/version.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

// A metric. By Prometheus' convention the name ends with the unit. `key`: the key of metrics.jsonl that it is read
// from, times `factor`; null: it is set from events.
struct Metric {
  const char *name, *type, *help, *key;
  double factor = 1;
};

constexpr std::array kMetrics{
    Metric{"transmamba_running", "gauge", "1 while the program trains, 0 after it has ended", nullptr},
    Metric{"transmamba_start_timestamp_seconds", "gauge", "when the current attempt began to train", nullptr},
    Metric{"transmamba_ranks", "gauge", "ranks of the run", nullptr},
    Metric{"transmamba_step", "gauge", "optimizer steps completed", "step"},
    Metric{"transmamba_last_step_timestamp_seconds", "gauge", "when the latest step ended", nullptr},
    Metric{"transmamba_loss", "gauge", "training loss, nats per token", "loss"},
    Metric{"transmamba_bits_per_byte", "gauge", "training loss, bits per byte of text", "bits_per_byte"},
    Metric{"transmamba_valid_loss", "gauge", "held-out loss, nats per token", "valid_loss"},
    Metric{"transmamba_valid_bits_per_byte", "gauge", "held-out loss, bits per byte of text", "valid_bits_per_byte"},
    Metric{"transmamba_gradient_norm", "gauge", "norm of the gradient before clipping", "grad_norm"},
    Metric{"transmamba_learning_rate", "gauge", "learning rate", "lr"},
    Metric{"transmamba_tokens", "gauge", "tokens trained on", "tokens"},
    Metric{"transmamba_tokens_per_second", "gauge", "tokens per second, all ranks together", "tokens_per_s"},
    Metric{"transmamba_step_seconds", "gauge", "time of the latest step", "step_ms", 1e-3},
    Metric{"transmamba_gigaflops", "gauge", "GEMM rate of a rank, 1e9 FLOP/s", "gflops"},
    Metric{"transmamba_memory_bytes", "gauge", "memory of the model, the optimizer and activations on rank 0",
           "memory_bytes"},
    Metric{"transmamba_skipped_steps_total", "counter", "steps skipped by this attempt", nullptr},
    Metric{"transmamba_checkpoint_step", "gauge", "step of the latest checkpoint of this attempt", nullptr},
    Metric{"transmamba_checkpoint_timestamp_seconds", "gauge", "when the latest checkpoint was complete", nullptr},
    Metric{"transmamba_checkpoint_failures_total", "counter", "checkpoints of this attempt that failed", nullptr},
};

std::string label_value(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '\n') {
      out += "\\n";
    } else {
      if (c == '\\' || c == '"') out += '\\';
      out += c;
    }
  }
  return out;
}

std::string number(double x) {
  if (std::isnan(x)) return "NaN";
  if (std::isinf(x)) return x > 0 ? "+Inf" : "-Inf";
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%.17g", x);
  return text.data();
}

}  // namespace

PrometheusFile::PrometheusFile(const fs::path& file, const std::string& run)
    : file_(file), label_("{run=\"" + label_value(run) + "\"}") {
  // Counters are written from the beginning, or Prometheus would not see their first increase.
  values_["transmamba_skipped_steps_total"] = values_["transmamba_checkpoint_failures_total"] = 0;
  write();
  if (failing_)
    throw UserError(str("run.prometheus = ", file.string(), " cannot be written; its directory must exist"));
}

void PrometheusFile::metric(const nlohmann::json& line) {
  for (const Metric& metric : kMetrics) {
    if (metric.key == nullptr || !line.contains(metric.key)) continue;
    const nlohmann::json& value = line[metric.key];
    values_[metric.name] = value.is_number() ? metric.factor * value.get<double>() : std::nan("");
  }
  if (line.contains("loss")) values_["transmamba_last_step_timestamp_seconds"] = line.value("time", 0.0);
  if (line.value("skipped", false)) ++values_["transmamba_skipped_steps_total"];
  if (seconds_since(written_) >= kSeconds) write();
}

void PrometheusFile::event(const std::string& kind, double time, const nlohmann::json& details) {
  if (kind == "start" || kind == "resume") {
    values_["transmamba_running"] = 1;
    values_["transmamba_start_timestamp_seconds"] = time;
    values_["transmamba_ranks"] = details.value("ranks", 0.0);
    values_["transmamba_step"] = details.value("step", 0.0);
  } else if (kind == "checkpoint") {
    values_["transmamba_checkpoint_step"] = details.value("step", 0.0);
    values_["transmamba_checkpoint_timestamp_seconds"] = time;
  } else if (kind == "checkpoint_failed") {
    ++values_["transmamba_checkpoint_failures_total"];
  } else if (kind == "done" || kind == "time_up" || kind == "stop" || kind == "failed" || kind == "no_progress") {
    values_["transmamba_running"] = 0;
  } else if (kind == "rollback") {
    values_["transmamba_step"] = details.value("step", 0.0);
  }
  write();
}

void PrometheusFile::write() {
  written_ = Clock::now();
  std::string text;
  for (const Metric& metric : kMetrics) {
    const auto value = values_.find(metric.name);
    if (value == values_.end()) continue;
    text += str("# HELP ", metric.name, " ", metric.help, "\n# TYPE ", metric.name, " ", metric.type, "\n", metric.name,
                label_, " ", number(value->second), "\n");
  }
  const BuildInfo& build = build_info();
  text += str("# HELP transmamba_build_info version and commit of the program\n# TYPE transmamba_build_info gauge\n",
              "transmamba_build_info", label_.substr(0, label_.size() - 1), ",version=\"", label_value(build.version),
              "\",commit=\"", label_value(build.commit), "\"} 1\n");
  // Written beside the file, so that rename() replaces it atomically; the collector does not read names ending in .tmp.
  const fs::path written = str(file_.string(), ".", getpid(), ".tmp");
  std::ofstream out(written, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  std::error_code error;
  if (out) fs::rename(written, file_, error);
  const bool failed = !out || error;
  if (failed) fs::remove(written, error);
  if (failed && !failing_) std::fprintf(stderr, "cannot write %s; it will be tried again\n", file_.c_str());
  failing_ = failed;
}

}  // namespace tmamba
