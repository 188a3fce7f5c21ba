#include "launch/run_folder.h"

#include <chrono>
#include <ctime>
#include <fstream>
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

void write_file(const fs::path& file, const std::string& text) {
  std::ofstream out(file);
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
  metrics_ = LineLog(dir_ / "metrics.jsonl");
  events_ = LineLog(dir_ / "events.jsonl");
  samples_ = LineLog(dir_ / "samples.txt");
}

void RunFolder::write_config(const std::string& toml) {
  if (!write_) return;
  write_file(dir_ / "config.toml", toml);
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
  if (write_) metrics_.append(line.dump());
}

void RunFolder::event(const std::string& kind, const nlohmann::json& details) {
  if (!write_) return;
  nlohmann::json line = {{"time", utc_now()}, {"event", kind}};
  line.update(details);
  events_.append(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void RunFolder::sample(int64_t step, const std::string& text) {
  if (write_) samples_.append(str("--- step ", step, "\n", text));
}

void RunFolder::rewind(int64_t step) {
  if (!write_) return;
  drop_after(dir_ / "metrics.jsonl", step);
  metrics_ = LineLog(dir_ / "metrics.jsonl");
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
  write_file(dir_ / "summary.json", summary.dump(2));
}

}  // namespace tmamba
