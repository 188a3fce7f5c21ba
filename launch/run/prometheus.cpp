#include "launch/run/prometheus.h"

#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"
#include "kernels/base/clock.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

// Every figure: its name, which Prometheus wants to hold its unit; type; meaning; the key of metrics.jsonl it is, if
// it is one, and what that is multiplied by.
struct Figure {
  const char *name, *type, *help, *key;
  double factor = 1;
};

constexpr std::array kFigures{
    Figure{"transmamba_running", "gauge", "1 while the program trains, 0 after it ended as it should", nullptr},
    Figure{"transmamba_start_timestamp_seconds", "gauge", "when the present start began to train", nullptr},
    Figure{"transmamba_ranks", "gauge", "ranks of the run", nullptr},
    Figure{"transmamba_step", "gauge", "optimizer steps taken", "step"},
    Figure{"transmamba_last_step_timestamp_seconds", "gauge", "when the newest step ended", nullptr},
    Figure{"transmamba_loss", "gauge", "training loss, nats per token", "loss"},
    Figure{"transmamba_bits_per_byte", "gauge", "training loss, bits per byte of text", "bits_per_byte"},
    Figure{"transmamba_valid_loss", "gauge", "held-out loss, nats per token", "valid_loss"},
    Figure{"transmamba_valid_bits_per_byte", "gauge", "held-out loss, bits per byte of text", "valid_bits_per_byte"},
    Figure{"transmamba_gradient_norm", "gauge", "norm of the gradient before clipping", "grad_norm"},
    Figure{"transmamba_learning_rate", "gauge", "learning rate", "lr"},
    Figure{"transmamba_tokens", "gauge", "tokens trained on", "tokens"},
    Figure{"transmamba_tokens_per_second", "gauge", "tokens a second, all ranks together", "tokens_per_s"},
    Figure{"transmamba_step_seconds", "gauge", "time of the newest step", "step_ms", 1e-3},
    Figure{"transmamba_gigaflops", "gauge", "matrix arithmetic of a rank, 1e9 a second", "gflops"},
    Figure{"transmamba_memory_bytes", "gauge", "memory of the model, the optimizer and activations on rank 0",
           "memory_bytes"},
    Figure{"transmamba_skipped_steps_total", "counter", "steps skipped by this start", nullptr},
    Figure{"transmamba_checkpoint_step", "gauge", "step of the newest checkpoint of this start", nullptr},
    Figure{"transmamba_checkpoint_timestamp_seconds", "gauge", "when it was whole", nullptr},
    Figure{"transmamba_checkpoint_failures_total", "counter", "checkpoints that could not be made by this start",
           nullptr},
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
  // Counters are there from the beginning, or their first increase would not be seen.
  figures_["transmamba_skipped_steps_total"] = figures_["transmamba_checkpoint_failures_total"] = 0;
  write();
  if (failing_)
    throw UserError(str("run.prometheus = ", file.string(), " cannot be written; its folder must be there"));
}

void PrometheusFile::metric(const nlohmann::json& line) {
  for (const Figure& figure : kFigures) {
    if (figure.key == nullptr || !line.contains(figure.key)) continue;
    const nlohmann::json& value = line[figure.key];
    figures_[figure.name] = value.is_number() ? figure.factor * value.get<double>() : std::nan("");
  }
  if (line.contains("loss")) figures_["transmamba_last_step_timestamp_seconds"] = line.value("time", 0.0);
  if (line.value("skipped", false)) ++figures_["transmamba_skipped_steps_total"];
  if (seconds_since(written_) >= kSeconds) write();
}

void PrometheusFile::event(const std::string& kind, double time, const nlohmann::json& details) {
  if (kind == "start" || kind == "resume") {
    figures_["transmamba_running"] = 1;
    figures_["transmamba_start_timestamp_seconds"] = time;
    figures_["transmamba_ranks"] = details.value("ranks", 0.0);
    figures_["transmamba_step"] = details.value("step", 0.0);
  } else if (kind == "checkpoint") {
    figures_["transmamba_checkpoint_step"] = details.value("step", 0.0);
    figures_["transmamba_checkpoint_timestamp_seconds"] = time;
  } else if (kind == "checkpoint_failed") {
    ++figures_["transmamba_checkpoint_failures_total"];
  } else if (kind == "done" || kind == "stop" || kind == "failed" || kind == "no_progress") {
    figures_["transmamba_running"] = 0;
  } else if (kind == "rollback") {
    figures_["transmamba_step"] = details.value("step", 0.0);
  }
  write();
}

void PrometheusFile::write() {
  written_ = Clock::now();
  std::string text;
  for (const Figure& figure : kFigures) {
    const auto value = figures_.find(figure.name);
    if (value == figures_.end()) continue;
    text += str("# HELP ", figure.name, " ", figure.help, "\n# TYPE ", figure.name, " ", figure.type, "\n", figure.name,
                label_, " ", number(value->second), "\n");
  }
  // Beside the file, so that renaming replaces it in one step, and with an end that the collector does not read.
  const fs::path written = str(file_.string(), ".", getpid(), ".tmp");
  std::ofstream out(written, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  std::error_code error;
  if (out) fs::rename(written, file_, error);
  const bool failed = !out || error;
  if (failed) fs::remove(written, error);
  if (failed && !failing_) std::fprintf(stderr, "cannot write %s; it is tried again\n", file_.c_str());
  failing_ = failed;
}

}  // namespace tmamba
