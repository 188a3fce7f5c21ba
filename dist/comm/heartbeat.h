// What a rank last said about itself, as the watchdog leaves it in a file for the others, and what follows from the
// heartbeats of all ranks when one of them waits too long. No MPI, no threads.
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
  int64_t order = 0;  // among all operations this process has started, from 1; kept by its watchdog, not told to others
};

struct CommunicatorRecord {
  uint64_t key = 0;  // the same on all members
  std::string name;
  std::vector<int> members;             // world ranks
  std::vector<OperationRecord> recent;  // the last operations started, oldest first

  int64_t started() const { return recent.empty() ? 0 : recent.back().sequence; }
  // The record of operation `sequence`, null where it is not among the recent ones.
  const OperationRecord* find(int64_t sequence) const;
};

struct Heartbeat {
  int rank = 0;
  std::string host;
  int64_t beat = 0;             // grows with every heartbeat written
  uint64_t waiting_key = 0;     // communicator of the operation waited for; 0: not waiting
  OperationRecord waiting_for;  // that operation
  double seconds = 0;           // waiting for it, or else outside any communication
  std::vector<CommunicatorRecord> communicators;

  bool waiting() const { return waiting_key != 0; }
  const CommunicatorRecord* find(uint64_t key) const;
};

// A text of several lines, for people too.
std::string to_text(const Heartbeat& heartbeat);
// Nothing where the text is not one of to_text.
std::optional<Heartbeat> heartbeat_from_text(const std::string& text);

// What is known of another rank.
struct SeenRank {
  std::string host;
  std::optional<Heartbeat> heartbeat;
  bool beating = false;  // its heartbeat still grows
};

// Why `waiter` waits: follows from rank to rank what each waits for, to those that hold up the others: ranks that did
// not arrive, stopped, or issued another operation. One line for the operation, one for each such rank.
std::string hang_report(const Heartbeat& waiter, const std::function<const SeenRank&(int)>& look_at);

}  // namespace tmamba
