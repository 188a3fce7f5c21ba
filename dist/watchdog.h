// class Watchdog: finds out that an operation hangs, and which rank holds it up.
//
// Every communicator tells it what is started and waited for. A thread writes that to a file of this rank's own
// (heartbeat.h) in a folder that all ranks see. When this rank has waited for one operation longer than the time limit,
// the thread reads the files of the others, prints who is missing where, and ends the process; the launcher, and the
// watchdogs of the other ranks, end the rest. The thread never calls MPI.
#pragma once

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "dist/heartbeat.h"

namespace tmamba {

struct WatchdogOptions {
  // An operation waited for longer than this ends the job. 0: off.
  double timeout_seconds = 0;
  // Where the heartbeats go: a folder that every host sees, used by nothing else, for example "heartbeat" in the run
  // folder. Empty: shared memory, where all ranks are on one host.
  std::filesystem::path folder;
};

class Watchdog {
 public:
  Watchdog(int rank, std::vector<std::string> hosts);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // --- For communicators, from the main thread ---
  using Handle = std::shared_ptr<CommunicatorRecord>;
  // A new communicator of these world ranks, until the handle is dropped.
  Handle watch(const std::string& name, std::vector<int> members);
  void started(const Handle& comm, const OperationRecord& operation);
  void wait_begins(const Handle& comm, const OperationRecord& operation);
  void wait_ends();

  // Starts the thread; World::start_watchdog is the way to do it. The folder exists and has none of our files.
  void start(double timeout_seconds, std::filesystem::path folder);
  // Ends the thread and removes this rank's file.
  void stop() noexcept;

 private:
  using Clock = std::chrono::steady_clock;

  void run();
  Heartbeat current();
  void write(const Heartbeat& heartbeat) const;
  // This rank waits too long. One rank of the job looks into it; the others give it time to.
  void handle_late();
  // Reads what the others wrote twice, to see who still writes. Returns nothing where the wait ended meanwhile.
  std::optional<std::string> investigate();
  std::filesystem::path file_of(int rank) const { return folder_ / ("rank-" + std::to_string(rank)); }
  std::filesystem::path report_file() const { return folder_ / "hang-report"; }
  std::filesystem::path investigator_file() const { return folder_ / "investigator"; }

  const int rank_;
  const std::vector<std::string> hosts_;
  double timeout_seconds_ = 0;
  std::chrono::duration<double> interval_{1};
  std::filesystem::path folder_;
  int late_ticks_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable stop_requested_;
  bool stopping_ = false;
  std::vector<std::weak_ptr<CommunicatorRecord>> communicators_;
  std::map<uint64_t, int> same_members_;  // communicators there have been with one name and members
  uint64_t waiting_key_ = 0;
  OperationRecord waiting_for_;
  double seconds_ = 0;  // since the wait began or ended, not counting the time this process did not run
  int64_t beat_ = 0;

  std::thread thread_;
};

}  // namespace tmamba
