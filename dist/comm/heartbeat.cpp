#include "dist/comm/heartbeat.h"

#include <algorithm>
#include <iomanip>
#include <set>
#include <sstream>

namespace tmamba {

const OperationRecord* CommunicatorRecord::find(int64_t sequence) const {
  const auto found = std::ranges::find(recent, sequence, &OperationRecord::sequence);
  return found == recent.end() ? nullptr : &*found;
}

const CommunicatorRecord* Heartbeat::find(uint64_t key) const {
  const auto found = std::ranges::find(communicators, key, &CommunicatorRecord::key);
  return found == communicators.end() ? nullptr : &*found;
}

namespace {

void write_operation(std::ostream& out, const OperationRecord& operation) {
  out << " " << operation.sequence << " " << name_of(operation.op) << " " << operation.bytes;
}

OperationRecord read_operation(std::istream& in) {
  OperationRecord operation;
  std::string name;
  in >> operation.sequence >> name >> operation.bytes;
  for (int op = 0; op < kCollectives; ++op) {
    operation.op = static_cast<Collective>(op);
    if (name == name_of(operation.op)) return operation;
  }
  in.setstate(std::ios::failbit);
  return operation;
}

}  // namespace

std::string to_text(const Heartbeat& heartbeat) {
  std::ostringstream out;
  out << "rank " << heartbeat.rank << " host " << std::quoted(heartbeat.host) << " beat " << heartbeat.beat
      << "\nwaiting " << heartbeat.waiting_key;
  write_operation(out, heartbeat.waiting_for);
  out << " seconds " << heartbeat.seconds << "\ncommunicators " << heartbeat.communicators.size() << "\n";
  for (const CommunicatorRecord& record : heartbeat.communicators) {
    out << record.key << " " << std::quoted(record.name) << " members " << record.members.size();
    for (int member : record.members) out << " " << member;
    out << " recent " << record.recent.size();
    for (const OperationRecord& operation : record.recent) write_operation(out, operation);
    out << "\n";
  }
  out << "end\n";
  return out.str();
}

std::optional<Heartbeat> heartbeat_from_text(const std::string& text) {
  std::istringstream in(text);
  auto expect = [&](const char* word) {
    std::string read;
    if (!(in >> read) || read != word) in.setstate(std::ios::failbit);
  };
  // The counts are untrusted: nothing is reserved for them, and the loops end at the end of the text.
  Heartbeat heartbeat;
  size_t communicators = 0, members = 0, recent = 0;
  expect("rank"), in >> heartbeat.rank, expect("host"), in >> std::quoted(heartbeat.host);
  expect("beat"), in >> heartbeat.beat;
  expect("waiting"), in >> heartbeat.waiting_key;
  heartbeat.waiting_for = read_operation(in);
  expect("seconds"), in >> heartbeat.seconds;
  expect("communicators"), in >> communicators;
  for (size_t i = 0; in && i < communicators; ++i) {
    CommunicatorRecord record;
    in >> record.key >> std::quoted(record.name), expect("members"), in >> members;
    for (size_t m = 0; in && m < members; ++m) in >> record.members.emplace_back();
    expect("recent"), in >> recent;
    for (size_t k = 0; in && k < recent; ++k) {
      record.recent.push_back(read_operation(in));
    }
    heartbeat.communicators.push_back(std::move(record));
  }
  expect("end");
  if (!in) return std::nullopt;
  return heartbeat;
}

namespace {

std::string seconds_text(double seconds) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << seconds << " s";
  return out.str();
}

std::string operation_text(const CommunicatorRecord& comm, const OperationRecord& operation) {
  return str(name_of(operation.op), " #", operation.sequence, " (", operation.bytes, " bytes) on \"", comm.name, "\"");
}

// Whether all ranks have the same number of bytes in this operation.
bool same_bytes_everywhere(Collective op) { return op != Collective::all_to_all && op != Collective::send_recv; }

bool contradict(const OperationRecord& a, const OperationRecord& b) {
  return a.op != b.op || (same_bytes_everywhere(a.op) && a.bytes != b.bytes);
}

class Investigation {
 public:
  explicit Investigation(const std::function<const RankStatus&(int)>& status_of) : status_of_(status_of) {}

  // Examines all other ranks of the operation that `waiter` waits for.
  void visit(const Heartbeat& waiter) {
    if (!visited_.insert(waiter.rank).second) return;
    const CommunicatorRecord* comm = waiter.find(waiter.waiting_key);
    if (comm == nullptr) return;
    waits_ += str("  rank ", waiter.rank, " on ", waiter.host, ": waits for ",
                  operation_text(*comm, waiter.waiting_for), " for ", seconds_text(waiter.seconds), "\n");
    for (int member : comm->members) {
      if (member != waiter.rank) examine(member, *comm, waiter.waiting_for);
    }
  }

  std::vector<int> ranks() const {
    const std::set<int>& found = !straggler_ranks_.empty()  ? straggler_ranks_
                                 : !possible_ranks_.empty() ? possible_ranks_
                                                            : visited_;
    return {found.begin(), found.end()};
  }

  std::string result() const {
    if (!stragglers_.empty()) return "stragglers:\n" + stragglers_;
    if (!possible_.empty()) return "possible stragglers:\n" + possible_;
    return "deadlock, the ranks wait for each other:\n" + waits_;
  }

 private:
  void examine(int rank, const CommunicatorRecord& comm, const OperationRecord& operation) {
    const RankStatus& seen = status_of_(rank);
    if (!seen.heartbeat) return add_straggler(rank, seen, "has written no heartbeat");
    const Heartbeat& other = *seen.heartbeat;
    const CommunicatorRecord* theirs = other.find(comm.key);
    const std::string outside = "outside any communication for " + seconds_text(other.seconds);
    const std::string last = theirs && !theirs->recent.empty()
                                 ? "; its last operation there was " + operation_text(*theirs, theirs->recent.back())
                                 : "; it has started no operation there";
    if (!seen.alive) return add_straggler(rank, seen, "its process has stopped" + last);
    if (theirs == nullptr)
      return add_straggler(rank, seen, str("has no communicator \"", comm.name, "\" of these ranks"));
    const OperationRecord* same = theirs->find(operation.sequence);
    if (same != nullptr && contradict(*same, operation)) {
      return add_straggler(rank, seen,
                           "issued " + operation_text(*theirs, *same) +
                               " instead; all ranks must issue the same operations in the same order");
    }
    if (other.waiting()) return visit(other);
    if (theirs->started() < operation.sequence) return add_straggler(rank, seen, "did not arrive: " + outside + last);
    // The rank may have completed the operation, or still be needed to forward messages.
    if (possible_ranks_.insert(rank).second) possible_ += line(rank, seen, "has started it and is " + outside);
  }

  void add_straggler(int rank, const RankStatus& seen, const std::string& what) {
    if (straggler_ranks_.insert(rank).second) stragglers_ += line(rank, seen, what);
  }

  static std::string line(int rank, const RankStatus& seen, const std::string& what) {
    return str("  rank ", rank, " on ", seen.host, ": ", what, "\n");
  }

  const std::function<const RankStatus&(int)>& status_of_;
  std::set<int> visited_, straggler_ranks_, possible_ranks_;
  std::string stragglers_, possible_, waits_;
};

}  // namespace

HangReport hang_report(const Heartbeat& waiter, const std::function<const RankStatus&(int)>& status_of) {
  const CommunicatorRecord* comm = waiter.find(waiter.waiting_key);
  TM_CHECK(comm != nullptr, "rank ", waiter.rank, " waits for nothing");
  Investigation investigation(status_of);
  investigation.visit(waiter);
  const std::string operation = operation_text(*comm, waiter.waiting_for);
  return {.operation = operation,
          .ranks = investigation.ranks(),
          .text = str("rank ", waiter.rank, " on ", waiter.host, ": ", operation, " timed out after ",
                      seconds_text(waiter.seconds), "; ", investigation.result())};
}

}  // namespace tmamba
