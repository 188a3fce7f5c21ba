// class Watchdog: finds out that an operation hangs, and which rank holds it up.
//
// Every communicator tells it what is started and waited for. A thread writes that to a file of this rank's own
// (heartbeat.h) in a folder that all ranks see. When this rank has waited for one operation longer than the time limit,
// the thread reads the files of the others, prints who is missing where, and ends the process; the launcher, and the
// watchdogs of the other ranks, end the rest.
//
// Operations that a device carries out are waited for from their start, wherever the host is meanwhile: the oldest one
// that the device has not finished is what this rank waits for. The thread calls neither MPI nor the device's library,
// which could block it as they block the main thread: devices write what they have finished to host memory.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "dist/comm/heartbeat.h"

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
  // Sequence number of the last operation a device has finished. The device writes it, the watchdog's thread reads it.
  using Finished = std::atomic<int64_t>;
  // A new communicator of these world ranks, until the handle is dropped; `finished` where a device carries out the
  // operations.
  Handle watch(const std::string& name, std::vector<int> members, const Finished* finished = nullptr);
  void started(const Handle& comm, const OperationRecord& operation);
  void wait_begins(const Handle& comm, const OperationRecord& operation);
  void wait_ends();

  // Starts the thread; World::start_watchdog is the way to do it. The folder exists and has none of our files.
  void start(double timeout_seconds, std::filesystem::path folder);
  // Ends the thread and removes this rank's file.
  void stop() noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  struct Watched {
    std::weak_ptr<CommunicatorRecord> record;
    const Finished* finished = nullptr;
  };
  // An operation waited for (key 0: none), and for how long: not counting the time this process did not run.
  struct Wait {
    uint64_t key = 0;
    OperationRecord operation;
    double seconds = 0;
  };

  void run();
  Heartbeat current();
  // Of the host, or else of a device. With the mutex held.
  const Wait& wait_now() const { return host_.key != 0 || device_.key == 0 ? host_ : device_; }
  void look_at_devices(double seconds);
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
  std::vector<Watched> communicators_;
  std::map<uint64_t, int> same_members_;  // communicators there have been with one name and members
  Wait host_;                             // with no operation: since the last wait ended
  Wait device_;
  int64_t started_ = 0;
  int64_t beat_ = 0;

  std::thread thread_;
};

}  // namespace tmamba
