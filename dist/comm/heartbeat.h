// The heartbeat that each rank's watchdog writes to a file for the others, and the hang report that names stragglers
// from the heartbeats of all ranks. No MPI, no threads.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"

namespace tmamba {

struct OperationRecord {
  int64_t sequence = 0;  // counted from 1 on its communicator
  Collective op = Collective::barrier;
  int64_t bytes = 0;
  int64_t order = 0;  // counted from 1 over all communicators of this process; not part of the heartbeat's text
};

struct CommunicatorRecord {
  uint64_t key = 0;  // identifies the communicator; the same on all members, never 0
  std::string name;
  std::vector<int> members;             // world ranks
  std::vector<OperationRecord> recent;  // the last operations started, oldest first

  int64_t started() const { return recent.empty() ? 0 : recent.back().sequence; }
  // The record of operation `sequence`; null if it is not among the recent ones.
  const OperationRecord* find(int64_t sequence) const;
};

struct Heartbeat {
  int rank = 0;
  std::string host;
  int64_t beat = 0;             // incremented with every heartbeat written
  uint64_t waiting_key = 0;     // communicator of the operation that the rank waits for; 0: it does not wait
  OperationRecord waiting_for;  // that operation
  double seconds = 0;           // how long it has waited or, if it does not wait, been outside communication
  std::vector<CommunicatorRecord> communicators;

  bool waiting() const { return waiting_key != 0; }
  const CommunicatorRecord* find(uint64_t key) const;
};

// Several human-readable lines.
std::string to_text(const Heartbeat& heartbeat);
// Parses to_text(); nullopt if the text is incomplete or damaged.
std::optional<Heartbeat> heartbeat_from_text(const std::string& text);

// The status of another rank, as the investigating rank sees it.
struct RankStatus {
  std::string host;
  std::optional<Heartbeat> heartbeat;  // nullopt: it has no readable heartbeat file
  bool alive = false;                  // its beat still increases
};

struct HangReport {
  std::string operation;   // that timed out: "all_reduce #7 (512 bytes) on "zero""
  std::vector<int> ranks;  // the stragglers, or possible ones; in a deadlock the ranks that wait
  std::string text;        // one line for the operation and one per straggler
};

// Explains the hang of `waiter`: follows what each rank waits for, from rank to rank, to the stragglers, which have not
// arrived, have stopped, or have issued another operation.
HangReport hang_report(const Heartbeat& waiter, const std::function<const RankStatus&(int)>& status_of);

}  // namespace tmamba
