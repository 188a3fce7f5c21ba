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
  // Counts come from a file: nothing is reserved, and reading ends where the text does.
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

// Operations whose bytes are the same on every rank.
bool same_bytes_everywhere(Collective op) { return op != Collective::all_to_all && op != Collective::send_recv; }

bool contradict(const OperationRecord& a, const OperationRecord& b) {
  return a.op != b.op || (same_bytes_everywhere(a.op) && a.bytes != b.bytes);
}

class Investigation {
 public:
  explicit Investigation(const std::function<const SeenRank&(int)>& look_at) : look_at_(look_at) {}

  // Looks at everybody who should take part in what `waiter` waits for.
  void visit(const Heartbeat& waiter) {
    if (!visited_.insert(waiter.rank).second) return;
    const CommunicatorRecord* comm = waiter.find(waiter.waiting_key);
    if (comm == nullptr) return;
    waits_ += str("  rank ", waiter.rank, " on ", waiter.host, ": waits for ",
                  operation_text(*comm, waiter.waiting_for), " for ", seconds_text(waiter.seconds), "\n");
    for (int member : comm->members) {
      if (member != waiter.rank) judge(member, *comm, waiter.waiting_for);
    }
  }

  std::string result() const {
    if (!causes_.empty()) return "held up by\n" + causes_;
    if (!suspects_.empty()) return "perhaps held up by\n" + suspects_;
    return "the ranks wait for each other\n" + waits_;
  }

 private:
  void judge(int rank, const CommunicatorRecord& comm, const OperationRecord& operation) {
    const SeenRank& seen = look_at_(rank);
    if (!seen.heartbeat) return blame(rank, seen, "has left no heartbeat");
    const Heartbeat& other = *seen.heartbeat;
    const CommunicatorRecord* theirs = other.find(comm.key);
    const std::string outside = " for " + seconds_text(other.seconds) + " outside any communication";
    const std::string last = theirs && !theirs->recent.empty()
                                 ? "; its last operation there was " + operation_text(*theirs, theirs->recent.back())
                                 : "; it has started no operation there";
    if (!seen.beating) return blame(rank, seen, "its process has stopped" + last);
    if (theirs == nullptr) return blame(rank, seen, str("has no communicator \"", comm.name, "\" of these ranks"));
    const OperationRecord* same = theirs->find(operation.sequence);
    if (same != nullptr && contradict(*same, operation)) {
      return blame(rank, seen,
                   "issued " + operation_text(*theirs, *same) +
                       " in its place; all ranks must issue the same operations in the same order");
    }
    if (other.waiting()) return visit(other);
    if (theirs->started() < operation.sequence) return blame(rank, seen, "did not arrive," + outside + last);
    // It may be done there, or be needed to pass messages on.
    if (suspected_.insert(rank).second) suspects_ += line(rank, seen, "has started it, and is" + outside);
  }

  void blame(int rank, const SeenRank& seen, const std::string& what) {
    if (blamed_.insert(rank).second) causes_ += line(rank, seen, what);
  }

  static std::string line(int rank, const SeenRank& seen, const std::string& what) {
    return str("  rank ", rank, " on ", seen.host, ": ", what, "\n");
  }

  const std::function<const SeenRank&(int)>& look_at_;
  std::set<int> visited_, blamed_, suspected_;
  std::string causes_, suspects_, waits_;
};

}  // namespace

std::string hang_report(const Heartbeat& waiter, const std::function<const SeenRank&(int)>& look_at) {
  const CommunicatorRecord* comm = waiter.find(waiter.waiting_key);
  TM_CHECK(comm != nullptr, "rank ", waiter.rank, " waits for nothing");
  Investigation investigation(look_at);
  investigation.visit(waiter);
  return str("rank ", waiter.rank, " on ", waiter.host, ": ", operation_text(*comm, waiter.waiting_for),
             " is not done after ", seconds_text(waiter.seconds), ", ", investigation.result());
}

}  // namespace tmamba
