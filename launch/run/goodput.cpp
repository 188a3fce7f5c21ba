#include "launch/run/goodput.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "launch/cli/format.h"
#include "launch/cli/wall_time.h"

namespace tmamba {

namespace {

// One line of a run's logs, at its time.
struct Entry {
  double time = 0;
  const StepRecord* step = nullptr;
  const PauseRecord* pause = nullptr;
  const EventRecord* event = nullptr;
  bool lost = false;
};

// The first event of a start, which says how long it took to get there; of one that failed before, also its last.
bool is_start(const EventRecord& event) {
  return event.kind == "start" || event.kind == "resume" || event.details.contains("startup_s");
}

double detail(const EventRecord& event, const char* key) {
  const auto found = event.details.find(key);
  return found != event.details.end() && found->is_number() ? found->get<double>() : 0;
}

std::vector<Entry> entries_of(const RunRecord& run, Goodput& goodput) {
  std::vector<Entry> entries;
  const auto add = [&](const Entry& entry) {
    if (std::isfinite(entry.time)) {
      entries.push_back(entry);
    } else {
      goodput.complete = false;
    }
  };
  for (const auto& [records, lost] : {std::pair{&run.kept, false}, std::pair{&run.lost, true}}) {
    for (const StepRecord& step : records->steps) add({.time = step.time, .step = &step, .lost = lost});
    for (const PauseRecord& pause : records->pauses) add({.time = pause.time, .pause = &pause, .lost = lost});
  }
  for (const EventRecord& event : run.events) add({.time = event.time, .event = &event});
  // Logged times are whole milliseconds. Of one and the same the lines of metrics come first: an event ends what they
  // tell of.
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    const double a_ms = std::round(1e3 * a.time), b_ms = std::round(1e3 * b.time);
    return a_ms != b_ms ? a_ms < b_ms : a.event == nullptr && b.event != nullptr;
  });
  return entries;
}

// Walks the lines in order of time; `now_` is up to where all time is counted.
class Ledger {
 public:
  explicit Ledger(Goodput& goodput) : goodput_(goodput) {}

  void start(const EventRecord& event) {
    StartRecord start;
    const double startup = detail(event, "startup_s");
    start.launched = event.time - (startup <= event.time ? startup : 0);
    start.from_step = start.to_step = std::max<int64_t>(0, event.step());
    start.ranks = static_cast<int64_t>(detail(event, "ranks"));
    start.resumed = event.kind == "resume";
    close();
    const bool first = goodput_.starts.empty(), after_the_end = !first && goodput_.starts.back().end == "done";
    goodput_.starts.push_back(start);
    if (first || after_the_end) {
      now_ = std::max(now_, start.launched);
    } else {
      spend(Spent::waiting, start.launched - now_);
    }
    rest(event.time, Spent::startup);
    first_step_ = true;
  }

  void step(const StepRecord& step, bool lost) {
    StartRecord& start = goodput_.starts.back();
    start.to_step = std::max(start.to_step, step.step);
    goodput_.steps += !lost && !step.skipped;
    goodput_.skipped_steps += step.skipped;
    goodput_.lost_steps += lost;
    start.lost_steps += lost || step.skipped;
    const double seconds = std::min(std::max(0.0, 1e-3 * step.step_ms), step.time - now_);
    spend(Spent::checkpoint, std::min(1e-3 * step.save_stall_ms, step.time - now_ - seconds));
    rest(step.time - seconds, first_step_ ? Spent::startup : Spent::other);
    rest(step.time, lost || step.skipped ? Spent::lost : Spent::training);
    first_step_ = false;
  }

  void pause(const PauseRecord& pause, bool lost) {
    const double seconds = std::min(pause.seconds, pause.time - now_);
    spend(Spent::checkpoint, std::min(1e-3 * pause.save_stall_ms, pause.time - now_ - seconds));
    rest(pause.time - seconds, Spent::other);
    rest(pause.time, lost ? Spent::lost : Spent::evaluation);
  }

  void event(const EventRecord& event) {
    // Found by a start before its own first event, so it is no sign of life of the one before.
    if (event.kind == "damaged") return;
    last_event_ = std::max(last_event_, event.time);
    StartRecord& start = goodput_.starts.back();
    if (event.kind == "failed") {
      start.end = event.kind;
      const auto problem = event.details.find("problem");
      if (problem != event.details.end() && problem->is_string()) start.why = problem->get<std::string>();
      rest(event.time, first_step_ ? Spent::startup : Spent::lost);
    } else if (event.kind == "done" || event.kind == "stop" || event.kind == "no_progress") {
      start.end = event.kind;
      spend(Spent::checkpoint, std::min(1e-3 * detail(event, "save_stall_ms"), event.time - now_));
      rest(event.time, first_step_ ? Spent::startup : Spent::other);
    } else if (event.kind == "rollback") {
      rest(event.time, Spent::lost);
    }
  }

  // The present start has ended, by its last event where nothing says so.
  void close() {
    if (goodput_.starts.empty()) return;
    StartRecord& start = goodput_.starts.back();
    if (start.end.empty()) {
      rest(last_event_, first_step_ ? Spent::startup : Spent::lost);
      start.end = "killed";
    }
    start.ended = now_;
  }

  double now() const { return now_; }

 private:
  void spend(Spent spent, double seconds) {
    if (!(seconds > 0)) return;
    now_ += seconds;
    goodput_.seconds[static_cast<size_t>(spent)] += seconds;
    goodput_.starts.back().seconds[static_cast<size_t>(spent)] += seconds;
    goodput_.wall_seconds += seconds;
  }
  void rest(double until, Spent spent) { spend(spent, until - now_); }

  Goodput& goodput_;
  double now_ = 0, last_event_ = 0;
  bool first_step_ = true;
};

// Whether a start, the entry at `at`, came to do anything: one that finds its run done does not.
bool does_a_step(const std::vector<Entry>& entries, size_t at) {
  for (size_t i = at + 1; i < entries.size(); ++i) {
    if (entries[i].event != nullptr && is_start(*entries[i].event)) return false;
    if (entries[i].step != nullptr) return true;
  }
  return false;
}

}  // namespace

const char* name_of(Spent spent) {
  static constexpr std::array<const char*, kSpents> kNames{"training",   "lost",    "startup", "checkpoint",
                                                           "evaluation", "waiting", "other"};
  return kNames[static_cast<size_t>(spent)];
}

Goodput goodput_of(const RunRecord& run) {
  Goodput goodput;
  const std::vector<Entry> entries = entries_of(run, goodput);
  Ledger ledger(goodput);
  bool done = false, idle = true;  // idle: before the first start, or in one that found the run done
  for (size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    // A run folder that was lost takes the event of its start along.
    const bool begins_anew = entry.event != nullptr && entry.event->kind == "folder_lost" && goodput.starts.empty();
    if (begins_anew || (entry.event != nullptr && is_start(*entry.event))) {
      idle = done && !does_a_step(entries, i);
      if (idle) continue;
      done = false;
      ledger.start(*entry.event);
    }
    if (idle) continue;
    if (entry.step != nullptr) ledger.step(*entry.step, entry.lost);
    if (entry.pause != nullptr) ledger.pause(*entry.pause, entry.lost);
    if (entry.event != nullptr) {
      ledger.event(*entry.event);
      done = done || entry.event->kind == "done";
    }
  }
  const bool open = !goodput.starts.empty() && goodput.starts.back().end.empty();
  ledger.close();
  if (open) goodput.starts.back().end = "running";
  return goodput;
}

nlohmann::json goodput_json(const Goodput& goodput) {
  const auto seconds_json = [](const SpentSeconds& seconds) {
    nlohmann::json out;
    for (size_t i = 0; i < kSpents; ++i) out[name_of(static_cast<Spent>(i))] = seconds[i];
    return out;
  };
  nlohmann::json starts = nlohmann::json::array();
  for (const StartRecord& start : goodput.starts) {
    starts.push_back({{"launched", utc_text(start.launched)},
                      {"ended", utc_text(start.ended)},
                      {"end", start.end},
                      {"why", start.why},
                      {"resumed", start.resumed},
                      {"ranks", start.ranks},
                      {"from_step", start.from_step},
                      {"to_step", start.to_step},
                      {"lost_steps", start.lost_steps},
                      {"seconds", seconds_json(start.seconds)}});
  }
  return {{"goodput", goodput.fraction()},
          {"wall_seconds", goodput.wall_seconds},
          {"seconds", seconds_json(goodput.seconds)},
          {"steps", goodput.steps},
          {"lost_steps", goodput.lost_steps},
          {"skipped_steps", goodput.skipped_steps},
          {"complete", goodput.complete},
          {"starts", starts}};
}

std::string goodput_text(const Goodput& goodput) {
  if (goodput.wall_seconds <= 0) return "not recorded";
  std::string text = str(fixed(100 * goodput.fraction(), 1), " % of ", duration(goodput.wall_seconds), " was training");
  for (size_t i = 0; i < kSpents; ++i) {
    const double part = goodput.seconds[i] / goodput.wall_seconds;
    if (static_cast<Spent>(i) == Spent::training || part < 5e-4) continue;
    text += str(", ", name_of(static_cast<Spent>(i)), " ", fixed(100 * part, 1), " %");
  }
  return text;
}

}  // namespace tmamba
