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

// Whether this is the first event of an attempt, which has its startup time; that of an attempt which failed during
// startup is also its last.
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
  // Logged times are whole milliseconds. At equal times metrics come first: an event ends the work they measure.
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    const double a_ms = std::round(1e3 * a.time), b_ms = std::round(1e3 * b.time);
    return a_ms != b_ms ? a_ms < b_ms : a.event == nullptr && b.event != nullptr;
  });
  return entries;
}

bool ended_as_planned(const AttemptRecord& attempt) { return attempt.end == "done" || attempt.end == "time_up"; }

// What a hang's event says of it: "rank 2: all_reduce #7 (512 bytes) on "zero"".
std::string hang_text(const nlohmann::json& event) {
  std::vector<int> ranks;
  if (const auto found = event.find("ranks"); found != event.end() && found->is_array()) {
    for (const nlohmann::json& rank : *found) {
      if (rank.is_number_integer()) ranks.push_back(rank);
    }
  }
  const auto operation = event.find("operation");
  return str(ranks_text(ranks), ": ",
             operation != event.end() && operation->is_string() ? operation->get<std::string>() : "?");
}

// Takes the lines in order of time. All time up to `now_` is counted.
class Ledger {
 public:
  explicit Ledger(Goodput& goodput) : goodput_(goodput) {}

  void start(const EventRecord& event) {
    AttemptRecord attempt;
    const double startup = detail(event, "startup_s");
    attempt.launched = event.time - (startup <= event.time ? startup : 0);
    attempt.from_step = attempt.to_step = std::max<int64_t>(0, event.step());
    attempt.ranks = static_cast<int64_t>(detail(event, "ranks"));
    attempt.resumed = event.kind == "resume";
    close();
    const bool first = goodput_.attempts.empty(), after_the_end = !first && ended_as_planned(goodput_.attempts.back());
    goodput_.attempts.push_back(attempt);
    if (first || after_the_end) {
      now_ = std::max(now_, attempt.launched);
    } else {
      spend(Spent::waiting, attempt.launched - now_);
    }
    rest(event.time, Spent::startup);
    first_step_ = true;
  }

  void step(const StepRecord& step, bool lost) {
    AttemptRecord& attempt = goodput_.attempts.back();
    attempt.to_step = std::max(attempt.to_step, step.step);
    goodput_.steps += !lost && !step.skipped;
    goodput_.skipped_steps += step.skipped;
    goodput_.lost_steps += lost;
    attempt.lost_steps += lost || step.skipped;
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
    // An attempt logs this before its own first event, so it does not show that the previous one was alive.
    if (event.kind == "damaged") return;
    last_event_ = std::max(last_event_, event.time);
    AttemptRecord& attempt = goodput_.attempts.back();
    if (event.kind == "failed" || event.kind == "hang") {
      attempt.end = event.kind;
      const auto problem = event.details.find("problem");
      if (event.kind == "hang") {
        attempt.why = hang_text(event.details);
      } else if (problem != event.details.end() && problem->is_string()) {
        attempt.why = problem->get<std::string>();
      }
      rest(event.time, first_step_ ? Spent::startup : Spent::lost);
    } else if (event.kind == "done" || event.kind == "time_up" || event.kind == "stop" || event.kind == "no_progress") {
      attempt.end = event.kind;
      if (event.kind == "time_up") {
        attempt.why = stopped_by_minutes(event.step(), static_cast<int64_t>(detail(event, "total_steps")));
      }
      spend(Spent::checkpoint, std::min(1e-3 * detail(event, "save_stall_ms"), event.time - now_));
      rest(event.time, first_step_ ? Spent::startup : Spent::other);
    } else if (event.kind == "rollback") {
      rest(event.time, Spent::lost);
    }
  }

  // The current attempt has ended, at its last event unless an event logged its end.
  void close() {
    if (goodput_.attempts.empty()) return;
    AttemptRecord& attempt = goodput_.attempts.back();
    if (attempt.end.empty()) {
      rest(last_event_, first_step_ ? Spent::startup : Spent::lost);
      attempt.end = "killed";
    }
    attempt.ended = now_;
  }

  double now() const { return now_; }

 private:
  void spend(Spent spent, double seconds) {
    if (!(seconds > 0)) return;
    now_ += seconds;
    goodput_.seconds[static_cast<size_t>(spent)] += seconds;
    goodput_.attempts.back().seconds[static_cast<size_t>(spent)] += seconds;
    goodput_.wall_seconds += seconds;
  }
  void rest(double until, Spent spent) { spend(spent, until - now_); }

  Goodput& goodput_;
  double now_ = 0, last_event_ = 0;
  bool first_step_ = true;
};

// Whether the attempt that begins at entries[at] made a step: one that finds its run done does not.
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
  bool done = false, idle = true;  // idle: before the first attempt, or in one that found the run done
  for (size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    // The event of an attempt's start is lost with its run directory.
    const bool recreated = entry.event != nullptr && entry.event->kind == "folder_lost" && goodput.attempts.empty();
    if (recreated || (entry.event != nullptr && is_start(*entry.event))) {
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
  const bool open = !goodput.attempts.empty() && goodput.attempts.back().end.empty();
  ledger.close();
  const bool gone = run.lease == LeaseState::gone || run.lease == LeaseState::ended;
  if (open && !gone) goodput.attempts.back().end = "running";
  return goodput;
}

std::string stopped_by_minutes(int64_t step, int64_t total_steps) {
  return str("stopped by train.minutes at step ", step, " of ", total_steps);
}

nlohmann::json goodput_json(const Goodput& goodput) {
  const auto seconds_json = [](const SpentSeconds& seconds) {
    nlohmann::json out;
    for (size_t i = 0; i < kSpents; ++i) out[name_of(static_cast<Spent>(i))] = seconds[i];
    return out;
  };
  nlohmann::json attempts = nlohmann::json::array();
  for (const AttemptRecord& attempt : goodput.attempts) {
    attempts.push_back({{"launched", utc_text(attempt.launched)},
                        {"ended", utc_text(attempt.ended)},
                        {"end", attempt.end},
                        {"why", attempt.why},
                        {"resumed", attempt.resumed},
                        {"ranks", attempt.ranks},
                        {"from_step", attempt.from_step},
                        {"to_step", attempt.to_step},
                        {"lost_steps", attempt.lost_steps},
                        {"seconds", seconds_json(attempt.seconds)}});
  }
  return {{"goodput", goodput.fraction()},
          {"wall_seconds", goodput.wall_seconds},
          {"seconds", seconds_json(goodput.seconds)},
          {"steps", goodput.steps},
          {"lost_steps", goodput.lost_steps},
          {"skipped_steps", goodput.skipped_steps},
          {"complete", goodput.complete},
          {"starts", attempts}};
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
