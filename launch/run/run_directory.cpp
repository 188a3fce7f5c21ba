#include "launch/run/run_directory.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "data/io/fs.h"
#include "kernels/base/check.h"
#include "launch/cli/format.h"
#include "launch/cli/version.h"
#include "launch/cli/wall_time.h"
#include "launch/run/goodput.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

double unix_now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// Keeps the lines of steps up to `step` and appends the others to lost.jsonl beside `file`. They are written there
// before they are removed here, so a crash in between leaves them in both; readers count such a line once.
MovedLines move_after(const fs::path& file, int64_t step) {
  MovedLines moved;
  std::ifstream in(file);
  if (!in) return moved;
  const fs::path kept = file.string() + ".tmp", lost = file.parent_path() / "lost.jsonl";
  {
    std::ofstream out(kept), lost_out;
    for (std::string line; std::getline(in, line);) {
      const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
      if (!object.is_object()) {
        ++moved.damaged;
      } else if (const nlohmann::json at = object.value("step", nlohmann::json(0)); at.is_number() && at > step) {
        if (!lost_out.is_open()) lost_out.open(lost, std::ios::app);
        lost_out << line << "\n";
        moved.steps += object.contains("loss");
      } else {
        out << line << "\n";
      }
    }
    if (lost_out.is_open() && !lost_out.flush()) throw FileError("write", lost, errno);
    if (!out.flush()) throw FileError("write", kept, errno);
  }
  fs::rename(kept, file);
  return moved;
}

// Replaces bytes that are not UTF-8: a sample may end inside a character.
std::string valid_utf8(const std::string& text) {
  return nlohmann::json::parse(nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

std::string event_line(double time, const std::string& kind, const nlohmann::json& details) {
  nlohmann::json line = {{"time", utc_text(time)}, {"event", kind}};
  line.update(details);
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// The numbers of a line of metrics.jsonl with their TensorBoard tags; the part before the slash is the group.
std::vector<std::pair<std::string, double>> tagged(const nlohmann::json& line) {
  static constexpr auto kTags =
      std::to_array<std::pair<const char*, const char*>>({{"loss", "train/loss"},
                                                          {"bits_per_byte", "train/bits_per_byte"},
                                                          {"grad_norm", "train/grad_norm"},
                                                          {"lr", "train/lr"},
                                                          {"valid_loss", "valid/loss"},
                                                          {"valid_bits_per_byte", "valid/bits_per_byte"},
                                                          {"tokens_per_s", "speed/tokens_per_s"},
                                                          {"gflops", "speed/gflops"},
                                                          {"step_ms", "time/step_ms"},
                                                          {"data_ms", "time/data_ms"},
                                                          {"compute_ms", "time/compute_ms"},
                                                          {"agree_ms", "time/agree_ms"},
                                                          {"update_ms", "time/update_ms"},
                                                          {"save_stall_ms", "time/save_stall_ms"},
                                                          {"memory_bytes", "memory/bytes"}});
  std::vector<std::pair<std::string, double>> values;
  for (const auto& [key, tag] : kTags) {
    if (const auto found = line.find(key); found != line.end() && found->is_number()) values.emplace_back(tag, *found);
  }
  return values;
}

void write_file(const fs::path& file, const std::string& text) {
  std::ofstream out(file);
  out << text << "\n";
  if (!out.flush()) throw FileError("write", file, errno);
}

}  // namespace

void RunDirectory::require_usable(const fs::path& dir) {
  std::error_code ignored;
  const fs::file_status status = fs::status(dir, ignored);
  if (!fs::exists(status)) return;
  if (!fs::is_directory(status)) throw UserError(str("run.dir = ", dir.string(), " is a file; give a directory"));
  if (::access(dir.c_str(), W_OK | X_OK) == 0) return;
  throw UserError(str("run.dir: ", FileError("write in", dir, errno).what()));
}

RunDirectory::RunDirectory(const fs::path& dir, int64_t resumed_step, const Lease* lease, const MetricSinks& sinks)
    : dir_(dir), lease_(lease), sinks_(sinks) {
  if (!writes()) return;
  open_logs(resumed_step);
  if (!sinks.prometheus.empty()) prometheus_ = std::make_unique<PrometheusFile>(sinks.prometheus, dir_.string());
}

void RunDirectory::open_logs(int64_t step) {
  std::error_code error;
  fs::create_directories(checkpoints(), error);
  if (error) throw UserError(str("run.dir: cannot create ", checkpoints().string(), ": ", error.message()));
  events_ = LineLog(dir_ / "events.jsonl");
  moved_ = move_after(dir_ / "metrics.jsonl", step);
  metrics_ = LineLog(dir_ / "metrics.jsonl");
  samples_ = LineLog(dir_ / "samples.txt");
  if (sinks_.tensorboard) tensorboard_ = std::make_unique<TensorBoardLog>(dir_ / "tensorboard", step);
}

bool RunDirectory::lost() const { return lease_ != nullptr && (metrics_.gone() || events_.gone()); }

bool RunDirectory::recreate(int64_t step, int ranks) {
  if (!writes()) return false;
  try {
    open_logs(step);
    (void)lease_->held_now();  // recreates its file too
    write_config(config_);
    write_plan(plan_);
  } catch (const std::exception& error) {
    if (!loss_reported_) {
      std::fprintf(stderr, "step %lld: the run directory %s was removed or moved and cannot be recreated: %s\n",
                   static_cast<long long>(step), dir_.c_str(), error.what());
    }
    loss_reported_ = true;
    return false;
  }
  loss_reported_ = false;
  std::fprintf(stderr,
               "step %lld: the run directory %s, or its logs, was removed or moved, and was recreated: its former "
               "contents, checkpoints too, are no longer in it. Training continues\n",
               static_cast<long long>(step), dir_.c_str());
  event("folder_lost", {{"step", step}, {"ranks", ranks}});
  return true;
}

std::string RunDirectory::time_text() const {
  try {
    return goodput_text(goodput_of(read_run_logs(dir_)));
  } catch (const std::exception& error) {
    return error.what();
  }
}

void RunDirectory::write_config(const std::string& toml) {
  if (!writes()) return;
  config_ = toml;
  write_file(dir_ / "config.toml", toml);
}

void RunDirectory::write_plan(const std::string& json) {
  if (!writes()) return;
  plan_ = json;
  const fs::path file = dir_ / "plan.json", written = dir_ / "plan.json.tmp";
  {
    std::ofstream out(written);
    out << json;
    if (!out.flush()) throw FileError("write", written, errno);
  }
  fs::rename(written, file);
}

void RunDirectory::metric(nlohmann::json line) {
  if (lease_ == nullptr || !lease_->held()) return;  // at every step, so without reading the lease file
  line["time"] = std::round(unix_now() * 1e3) / 1e3;
  if (!std::exchange(build_recorded_, true)) line["build"] = build_json();
  metrics_.append(line.dump());
  if (tensorboard_) tensorboard_->scalars(line.value("step", int64_t{0}), line["time"], tagged(line));
  if (prometheus_) prometheus_->metric(line);
}

void RunDirectory::started(bool resumed, int64_t step, int ranks) {
  nlohmann::json details = {{"step", step},
                            {"ranks", ranks},
                            {"startup_s", std::round(process_age_seconds() * 1e3) / 1e3},
                            {"build", build_json()}};
  if (moved_.steps > 0) details["steps_again"] = moved_.steps;
  if (moved_.damaged > 0) details["damaged_lines"] = moved_.damaged;
  event(resumed ? "resume" : "start", details);
}

void RunDirectory::append_event(const fs::path& dir, const std::string& kind, const nlohmann::json& details) {
  try {
    if (fs::is_directory(dir)) LineLog(dir / "events.jsonl").append(event_line(unix_now(), kind, details));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
}

void RunDirectory::event(const std::string& kind, const nlohmann::json& details) {
  if (!writes()) return;
  const double now = unix_now();
  events_.append(event_line(now, kind, details));
  if (prometheus_) prometheus_->event(kind, now, details);
}

void RunDirectory::sample(int64_t step, const std::string& text) {
  if (!writes()) return;
  samples_.append(str("--- step ", step, "\n", text));
  // Indented: TensorBoard renders Markdown, which shows indented text unchanged.
  if (tensorboard_) tensorboard_->text(step, unix_now(), "sample", indent(valid_utf8(text)));
}

void RunDirectory::rewind(int64_t step) {
  if (!writes()) return;
  move_after(dir_ / "metrics.jsonl", step);
  metrics_ = LineLog(dir_ / "metrics.jsonl");
  if (tensorboard_) tensorboard_ = std::make_unique<TensorBoardLog>(dir_ / "tensorboard", step);
}

void RunDirectory::write_goodput() {
  if (!writes()) return;
  // The run has ended and is saved; a failed write here must not fail it.
  try {
    write_file(dir_ / "goodput.json", goodput_json(goodput_of(read_run_logs(dir_))).dump(2));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
}

nlohmann::json RunDirectory::read_summary() const {
  std::ifstream in(dir_ / "summary.json");
  const nlohmann::json summary = nlohmann::json::parse(in, nullptr, false);
  if (!summary.is_object())
    throw UserError(str((dir_ / "summary.json").string(), ": missing or damaged; delete it and start the run again"));
  return summary;
}

void RunDirectory::write_summary(const nlohmann::json& summary) {
  if (!writes()) return;
  write_file(dir_ / "summary.json", summary.dump(2));
}

}  // namespace tmamba
