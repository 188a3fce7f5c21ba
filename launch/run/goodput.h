// The goodput ledger: where the wall time of a run went, over all its attempts, from the logs of its run directory.
// Each moment from the launch of the first attempt to the last line is counted once, so the parts sum to the total.
//
//   training    steps that count
//   lost        steps that were repeated or skipped, evaluations that were repeated, and the time of a killed attempt
//               after its last line
//   startup     from the launch of the program to the beginning of its first step
//   checkpoint  saves that kept training waiting
//   evaluation  evaluations and samples
//   waiting     from the last line of an attempt to the launch of the next one
//   other       everything else: writing logs, replica checks
//
// Time between the end of a run that was done and a later attempt that resumes it is not counted.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/run/run_record.h"

namespace tmamba {

enum class Spent { training, lost, startup, checkpoint, evaluation, waiting, other };
inline constexpr size_t kSpents = static_cast<size_t>(Spent::other) + 1;
const char* name_of(Spent spent);

using SpentSeconds = std::array<double, kSpents>;

struct AttemptRecord {
  double launched = 0, ended = 0;  // seconds since 1970; ended: its last line
  int64_t from_step = 0, to_step = 0;
  int64_t ranks = 0;
  bool resumed = false;
  std::string why;         // the error of a "failed" attempt, the stragglers and operation of a "hang"
  std::string end;         // "done", "time_up", "stop", "failed", "hang", "no_progress"; without one of these events
                           // "running", or "killed" where another attempt followed or its process is gone
  int64_t lost_steps = 0;  // steps of this attempt that were repeated or skipped
  SpentSeconds seconds{};  // `waiting`: before this attempt
};

struct Goodput {
  double wall_seconds = 0;
  SpentSeconds seconds{};
  int64_t steps = 0, lost_steps = 0, skipped_steps = 0;
  std::vector<AttemptRecord> attempts;
  bool complete = true;  // false: lines without a time, of an older version, are not counted

  double of(Spent spent) const { return seconds[static_cast<size_t>(spent)]; }
  // Training divided by wall time; 0 where nothing was recorded.
  double fraction() const { return wall_seconds > 0 ? of(Spent::training) / wall_seconds : 0; }
};

Goodput goodput_of(const RunRecord& run);

// "stopped by train.minutes at step 328 of 500".
std::string stopped_by_minutes(int64_t step, int64_t total_steps);

nlohmann::json goodput_json(const Goodput& goodput);
// One line: "93.1 % of 12:07: lost 2.0 %, startup 1.2 %, ...".
std::string goodput_text(const Goodput& goodput);

}  // namespace tmamba
