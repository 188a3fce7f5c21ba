// class Watchdog detects that an operation hangs and reports the stragglers.
//
// Every communicator reports the operations that it starts and waits for. The watchdog's thread writes them to this
// rank's heartbeat file (heartbeat.h) in a folder that all ranks see. When this rank has waited for one operation
// longer than the timeout, the thread reads the files of the other ranks, prints a hang report and ends the process.
// The launcher and the watchdogs of the other ranks end the other processes.
//
// For device operations the wait begins at their start, whatever the host does: this rank waits for the oldest
// operation that the device has not finished. The thread calls neither MPI nor CUDA, which could block it like the main
// thread; instead devices write the number of finished operations to host memory.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "dist/comm/heartbeat.h"

namespace tmamba {

struct WatchdogOptions {
  // The job ends if a rank waits longer than this for one operation. 0: no watchdog.
  double timeout_seconds = 0;
  // Folder for the heartbeat files, which every host sees and nothing else uses, for example "heartbeat" in the run
  // directory. Empty: shared memory, which needs all ranks on one host.
  std::filesystem::path folder;
  // Called on the watchdog's thread of the rank that prints the report; may be null. It gets 10 seconds.
  std::function<void(const HangReport&)> on_hang = {};
};

class Watchdog {
 public:
  Watchdog(int rank, std::vector<std::string> hosts);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // --- For communicators, from the main thread ---
  using Handle = std::shared_ptr<CommunicatorRecord>;
  // Sequence number of the last operation that a device has finished. The device writes it, the watchdog's thread reads
  // it.
  using Finished = std::atomic<int64_t>;
  // Registers a communicator of these world ranks until the handle is dropped. `finished` is null for host
  // communicators.
  Handle watch(const std::string& name, std::vector<int> members, const Finished* finished = nullptr);
  void started(const Handle& comm, const OperationRecord& operation);
  void wait_begins(const Handle& comm, const OperationRecord& operation);
  void wait_ends();

  // Starts the thread; called by World::start_watchdog. The folder must exist and contain no files of a watchdog.
  // Throws UserError if it is not writable.
  void start(WatchdogOptions options);
  // Ends the thread and removes this rank's file.
  void stop() noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  struct Watched {
    std::weak_ptr<CommunicatorRecord> record;
    const Finished* finished = nullptr;
  };
  // The operation that is waited for (key 0: none) and how long, without the time in which this process was suspended.
  struct Wait {
    uint64_t key = 0;
    OperationRecord operation;
    double seconds = 0;
  };

  void run();
  Heartbeat current();
  // The wait of the host or, if it does not wait, of a device. Requires the mutex.
  const Wait& wait_now() const { return host_.key != 0 || device_.key == 0 ? host_ : device_; }
  void update_device_wait(double seconds);
  void write(const Heartbeat& heartbeat) const;
  // Called while the timeout is exceeded. One rank of the job investigates; the others give it time to report.
  void handle_timeout();
  // Reads the other ranks' files twice, to see which still change. Returns the report, or nullopt if the wait has ended
  // meanwhile.
  std::optional<HangReport> investigate();
  void end_job(const HangReport& report);
  std::filesystem::path file_of(int rank) const { return options_.folder / ("rank-" + std::to_string(rank)); }
  std::filesystem::path report_file() const { return options_.folder / "hang-report"; }
  std::filesystem::path investigator_file() const { return options_.folder / "investigator"; }

  const int rank_;
  const std::vector<std::string> hosts_;
  WatchdogOptions options_;
  std::chrono::duration<double> interval_{1};
  int timeout_ticks_ = 0;  // consecutive ticks over the timeout

  std::mutex mutex_;  // guards the members below
  std::condition_variable stop_requested_;
  bool stopping_ = false;
  std::vector<Watched> communicators_;
  std::map<uint64_t, int> same_members_;  // communicators created so far with the same name and members
  Wait host_;                             // without an operation, `seconds` counts from the end of the last wait
  Wait device_;
  int64_t started_ = 0;
  int64_t beat_ = 0;

  std::thread thread_;
};

}  // namespace tmamba
