#include "launch/run_folder.h"

#include <chrono>
#include <ctime>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

// Keeps the lines of steps up to `step`; a line cut short by a crash goes too.
void drop_after(const fs::path& file, int64_t step) {
  std::ifstream in(file);
  if (!in) return;
  const fs::path kept = file.string() + ".tmp";
  {
    std::ofstream out(kept);
    for (std::string line; std::getline(in, line);) {
      const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
      if (!object.is_discarded() && object.value("step", int64_t{0}) <= step) out << line << "\n";
    }
    if (!out.flush()) throw Error(str(kept.string(), ": cannot write; is the disk full?"));
  }
  fs::rename(kept, file);
}

void write_line(std::ofstream& out, const fs::path& file, const std::string& text) {
  out << text << "\n";
  if (!out.flush()) throw Error(str(file.string(), ": cannot write; is the disk full?"));
}

}  // namespace

RunFolder::RunFolder(const fs::path& dir, int64_t resumed_step, bool write) : dir_(dir), write_(write) {
  if (!write_) return;
  std::error_code error;
  fs::create_directories(checkpoints(), error);
  if (error) throw UserError(str("run.dir: cannot create ", checkpoints().string(), ": ", error.message()));
  drop_after(dir_ / "metrics.jsonl", resumed_step);
  metrics_.open(dir_ / "metrics.jsonl", std::ios::app);
  events_.open(dir_ / "events.jsonl", std::ios::app);
  samples_.open(dir_ / "samples.txt", std::ios::app);
  if (!metrics_ || !events_ || !samples_) throw UserError(str("run.dir: cannot write in ", dir_.string()));
}

void RunFolder::write_config(const std::string& toml) {
  if (!write_) return;
  std::ofstream out(dir_ / "config.toml");
  write_line(out, dir_ / "config.toml", toml);
}

void RunFolder::write_plan(const std::string& json) {
  if (!write_) return;
  const fs::path file = dir_ / "plan.json", written = dir_ / "plan.json.tmp";
  {
    std::ofstream out(written);
    out << json;
    if (!out.flush()) throw Error(str(written.string(), ": cannot write; is the disk full?"));
  }
  fs::rename(written, file);
}

void RunFolder::metric(const nlohmann::json& line) {
  if (write_) write_line(metrics_, dir_ / "metrics.jsonl", line.dump());
}

void RunFolder::event(const std::string& kind, const nlohmann::json& details) {
  if (!write_) return;
  nlohmann::json line = {{"time", utc_now()}, {"event", kind}};
  line.update(details);
  write_line(events_, dir_ / "events.jsonl", line.dump());
}

void RunFolder::sample(int64_t step, const std::string& text) {
  if (write_) write_line(samples_, dir_ / "samples.txt", str("--- step ", step, "\n", text));
}

nlohmann::json RunFolder::read_summary() const {
  std::ifstream in(dir_ / "summary.json");
  const nlohmann::json summary = nlohmann::json::parse(in, nullptr, false);
  if (!summary.is_object())
    throw UserError(str((dir_ / "summary.json").string(), ": missing or damaged; delete it and start the run again"));
  return summary;
}

void RunFolder::write_summary(const nlohmann::json& summary) {
  if (!write_) return;
  std::ofstream out(dir_ / "summary.json");
  write_line(out, dir_ / "summary.json", summary.dump(2));
}

}  // namespace tmamba
