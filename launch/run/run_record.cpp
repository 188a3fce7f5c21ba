#include "launch/run/run_record.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <functional>
#include <set>
#include <utility>

#include "data/io/fs.h"
#include "kernels/base/check.h"
#include "launch/cli/wall_time.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kLongestLine = 1 << 20, kMostProblems = 20, kMostSamples = 10000;
constexpr int64_t kLongestText = int64_t{1} << 20, kLongestPlan = int64_t{1} << 28;

// Collects the problems of one file: the first kMostProblems with their line, then their number.
class Problems {
 public:
  Problems(std::string file, std::vector<std::string>& list) : file_(std::move(file)), list_(list) {}
  ~Problems() {
    if (count_ > kMostProblems) list_.push_back(str(file_, ": ", count_ - kMostProblems, " more lines like these"));
  }
  Problems(const Problems&) = delete;
  Problems& operator=(const Problems&) = delete;
  void add(int64_t line, const std::string& what) {
    if (++count_ <= kMostProblems) list_.push_back(str(file_, ":", line, ": ", what));
  }

 private:
  std::string file_;
  std::vector<std::string>& list_;
  size_t count_ = 0;
};

// Calls f(line number, object) for every line that is a JSON object; other lines are problems.
void each_object(const fs::path& file, Problems& problems, const std::function<void(int64_t, const json&)>& f) {
  std::ifstream in(file, std::ios::binary);
  if (!in) return;
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    const bool truncated = in.eof();  // no newline: the line is being written, or a crash cut it off
    const json object = line.size() > kLongestLine ? json(json::value_t::discarded) : json::parse(line, nullptr, false);
    if (object.is_object()) {
      f(number, object);
    } else if (line.size() > kLongestLine) {
      problems.add(number, str("ignored a line of ", line.size(), " bytes: too long for a run's log"));
    } else {
      problems.add(number,
                   truncated ? "ignored the last line: it is truncated" : "ignored a damaged line: not a JSON object");
    }
  }
}

double number_of(const json& object, const char* key, double otherwise = kNotRecorded) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : otherwise;
}

// Whether a line can have been written at this time: after 1970, and not later than tomorrow.
bool is_a_time(double seconds) { return seconds >= 0 && seconds < static_cast<double>(std::time(nullptr)) + 86400; }

// The step of a line, or -1.
int64_t step_of(const json& object) {
  const double step = number_of(object, "step", -1);
  return step >= 0 && step < 9e15 ? static_cast<int64_t>(step) : -1;
}

StepRecord step_record(const json& o) {
  const auto skipped = o.find("skipped");
  return {.step = step_of(o),
          .time = number_of(o, "time"),
          .loss = number_of(o, "loss"),
          .bits_per_byte = number_of(o, "bits_per_byte"),
          .grad_norm = number_of(o, "grad_norm"),
          .lr = number_of(o, "lr"),
          .tokens = number_of(o, "tokens"),
          .tokens_per_s = number_of(o, "tokens_per_s"),
          .gflops = number_of(o, "gflops"),
          .mfu = number_of(o, "mfu"),
          .memory_bytes = number_of(o, "memory_bytes"),
          .step_ms = number_of(o, "step_ms"),
          .data_ms = number_of(o, "data_ms"),
          .compute_ms = number_of(o, "compute_ms"),
          .agree_ms = number_of(o, "agree_ms"),
          .update_ms = number_of(o, "update_ms"),
          .save_stall_ms = number_of(o, "save_stall_ms", 0),
          .skipped = skipped != o.end() && skipped->is_boolean() && skipped->get<bool>()};
}

PauseRecord pause_record(const json& o) {
  return {.step = step_of(o),
          .time = number_of(o, "time"),
          .valid_loss = number_of(o, "valid_loss"),
          .valid_bits_per_byte = number_of(o, "valid_bits_per_byte"),
          .valid_tokens = number_of(o, "valid_tokens"),
          .seconds = number_of(o, "eval_s", number_of(o, "sample_s", 0)),
          .save_stall_ms = number_of(o, "save_stall_ms", 0)};
}

// `ascending`: the file has each step once, in order.
MetricRecords read_metrics(const fs::path& file, bool ascending, std::vector<std::string>& list) {
  MetricRecords records;
  Problems problems(file.filename().string(), list);
  each_object(file, problems, [&](int64_t number, const json& object) {
    const int64_t step = step_of(object);
    if (step < 0) return problems.add(number, "ignored a line without a step number");
    if (const double time = number_of(object, "time"); !std::isnan(time) && !is_a_time(time)) {
      return problems.add(number, str("ignored a line with the impossible time ", time));
    }
    if (!object.contains("loss")) return records.pauses.push_back(pause_record(object));
    if (ascending && !records.steps.empty() && step <= records.steps.back().step) {
      return problems.add(number, str("ignored step ", step, ": it comes after step ", records.steps.back().step));
    }
    records.steps.push_back(step_record(object));
  });
  return records;
}

std::vector<EventRecord> read_events(const fs::path& file, std::vector<std::string>& list) {
  std::vector<EventRecord> events;
  Problems problems(file.filename().string(), list);
  each_object(file, problems, [&](int64_t number, const json& object) {
    const auto kind = object.find("event"), time = object.find("time");
    if (kind == object.end() || !kind->is_string()) return problems.add(number, "ignored an event without a name");
    const auto seconds =
        time != object.end() && time->is_string() ? utc_seconds(time->get<std::string>()) : std::nullopt;
    if (!seconds || !is_a_time(*seconds)) return problems.add(number, "ignored an event without a time");
    events.push_back({*seconds, kind->get<std::string>(), object});
  });
  return events;
}

// Reads a file that may be missing; any other failure is a problem.
template <class Read>
void read_if_there(const fs::path& file, std::vector<std::string>& problems, Read&& read) {
  std::error_code ignored;  // a file that cannot be accessed counts as missing
  if (!fs::exists(file, ignored)) return;
  try {
    read();
  } catch (const std::exception& error) {
    problems.push_back(str(file.filename().string(), ": ", error.what()));
  }
}

// Samples begin at lines "--- step N".
std::vector<SampleRecord> read_samples(const fs::path& file, std::vector<std::string>& list) {
  static const std::string kHead = "--- step ";
  std::vector<SampleRecord> samples;
  Problems problems(file.filename().string(), list);
  std::ifstream in(file, std::ios::binary);
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    const bool head = line.rfind(kHead, 0) == 0 && line.size() > kHead.size() && line.size() < kHead.size() + 16 &&
                      std::all_of(line.begin() + static_cast<std::ptrdiff_t>(kHead.size()), line.end(),
                                  [](char c) { return c >= '0' && c <= '9'; });
    if (head) {
      if (samples.size() == kMostSamples) samples.erase(samples.begin());
      samples.push_back({std::stoll(line.substr(kHead.size())), ""});
    } else if (samples.empty()) {
      problems.add(number, "ignored text before the first sample");
    } else if (samples.back().text.size() < kLongestLine) {
      samples.back().text += (samples.back().text.empty() ? "" : "\n") + line;
    }
  }
  return samples;
}

// The last two parts of the path: most run directories are named "run".
std::string name_of_run(const fs::path& dir) {
  std::error_code error;
  fs::path path = fs::canonical(dir, error);
  if (error) path = fs::absolute(dir).lexically_normal();
  const std::string last = path.filename().string(), before = path.parent_path().filename().string();
  return before.empty() ? last : before + "/" + last;
}

// Drops lost records that are kept too: a crash may leave a line in both files.
void drop_kept(MetricRecords& lost, const MetricRecords& kept) {
  std::set<std::pair<int64_t, double>> seen;
  const auto drop = [&seen](auto& records, const auto& kept_records) {
    seen.clear();
    for (const auto& record : kept_records) seen.insert({record.step, record.time});
    // Also drops repeated lines of lost.jsonl, except the first.
    std::erase_if(records, [&](const auto& record) {
      return std::isfinite(record.time) && !seen.insert({record.step, record.time}).second;
    });
  };
  drop(lost.pauses, kept.pauses);
  drop(lost.steps, kept.steps);
}

}  // namespace

int64_t EventRecord::step() const { return step_of(details); }

RunRecord read_run_logs(const fs::path& dir) {
  std::error_code ignored;
  if (!fs::exists(dir / "metrics.jsonl", ignored) && !fs::exists(dir / "events.jsonl", ignored)) {
    throw UserError(
        str(dir.string(),
            fs::exists(dir, ignored) ? ": not a run directory, it has no metrics.jsonl" : ": no such run directory",
            "; give the run.dir of a run"));
  }
  RunRecord run;
  run.dir = dir;
  run.name = name_of_run(dir);
  run.kept = read_metrics(dir / "metrics.jsonl", true, run.problems);
  run.lost = read_metrics(dir / "lost.jsonl", false, run.problems);
  drop_kept(run.lost, run.kept);
  run.lease = lease_state(dir);  // before the events: an attempt logs its end before it ends its lease
  run.events = read_events(dir / "events.jsonl", run.problems);
  return run;
}

RunRecord read_run(const fs::path& dir) {
  RunRecord run = read_run_logs(dir);
  run.samples = read_samples(dir / "samples.txt", run.problems);
  read_if_there(dir / "config.toml", run.problems, [&] { run.config = read_text(dir / "config.toml", kLongestText); });
  read_if_there(dir / "plan.json", run.problems,
                [&] { run.plan = plan_from_json(read_text(dir / "plan.json", kLongestPlan)).dims; });
  read_if_there(dir / "summary.json", run.problems, [&] {
    run.summary = json::parse(read_text(dir / "summary.json", kLongestText), nullptr, false);
    if (run.summary.is_object()) return;
    run.summary = nullptr;
    throw Error("damaged: not a JSON object");
  });
  return run;
}

}  // namespace tmamba
