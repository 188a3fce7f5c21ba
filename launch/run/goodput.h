// The goodput ledger: where the wall time of a run went, over all its starts, from the logs of its folder. Each moment
// from the launch of the first start to the last line is counted once, so the parts sum to the whole.
//
//   training    steps that count
//   lost        steps that were done again or skipped, evaluations done again, and what a start that was killed did
//               after its last line
//   startup     from the launch of the program to the beginning of its first step
//   checkpoint  saves that kept training waiting
//   evaluation  evaluations and samples
//   waiting     from the last line of a start to the launch of the next one
//   other       all else: writing logs, checks of replicas
//
// Time between the end of a run that was done and a later start that goes on is not counted.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/run/run_record.h"

namespace tmamba {

enum class Spent { training, lost, startup, checkpoint, evaluation, waiting, other };
inline constexpr size_t kSpents = 7;
const char* name_of(Spent spent);

using SpentSeconds = std::array<double, kSpents>;

// One start of the program.
struct StartRecord {
  double launched = 0, ended = 0;  // seconds since 1970; ended: its last line
  int64_t from_step = 0, to_step = 0;
  int64_t ranks = 0;
  bool resumed = false;
  std::string why;         // it ended: the error of a "failed" one
  std::string end;         // "done", "stop", "failed", "no_progress"; "killed", or "running": nothing says how it ended
  int64_t lost_steps = 0;  // of its steps were done again or skipped
  SpentSeconds seconds{};  // `waiting`: before it
};

struct Goodput {
  double wall_seconds = 0;
  SpentSeconds seconds{};
  int64_t steps = 0, lost_steps = 0, skipped_steps = 0;
  std::vector<StartRecord> starts;
  bool complete = true;  // false: lines without a time, of an older version, could not be counted

  double of(Spent spent) const { return seconds[static_cast<size_t>(spent)]; }
  // The part of the wall time that was training; 0 where nothing was recorded.
  double fraction() const { return wall_seconds > 0 ? of(Spent::training) / wall_seconds : 0; }
};

Goodput goodput_of(const RunRecord& run);

nlohmann::json goodput_json(const Goodput& goodput);
// One line: "93.1 % of 12:07: lost 2.0 %, startup 1.2 %, ...".
std::string goodput_text(const Goodput& goodput);

}  // namespace tmamba
