// class Lease: the right of one attempt to write in a run directory, without file locks.
//
// The lease is a file, lease-N.json in the run directory, which names its holder; the highest N counts. To take over, a
// later attempt creates lease-(N+1).json, which only one process can do, and removes lease-N.json. The holder's thread
// touches its file every few seconds. A holder whose file is gone or is not the highest one is fenced: it must not
// write any more. Times are those of the file server: modification times of files, compared with each other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>

namespace tmamba {

struct LeaseTimes {
  double beat = 5;    // seconds between heartbeats
  double stale = 30;  // a holder without a heartbeat for longer than this is taken for dead
  double look = 1;    // seconds between looks whether another attempt has taken over
};

struct LeaseOptions {
  bool take_over = false;  // from a holder that is alive, too
  std::string job;         // the batch job of this process; empty: none
  LeaseTimes times = {};
};

// What identifies a lease on every rank.
struct LeaseId {
  std::filesystem::path run;
  int64_t number = 0;
  std::string nonce;
};

// Whether this lease is still the one of its run directory. Also true if the directory is gone or cannot be read.
bool is_current(const LeaseId& lease);

class Lease {
 public:
  // Takes the lease of `run`, which is created if it is missing. At once if nobody holds it, its holder belongs to the
  // same job, or is a process of this machine that has ended; else it waits until the holder's next heartbeat, and
  // throws ExitError with kNoProgress, or until the lease is stale. ExitError with kSavedAndStopped if a signal asks
  // this process to stop meanwhile. Throws UserError or FileError if it cannot write there.
  Lease(const std::filesystem::path& run, const LeaseOptions& options);
  // Ends the lease, unless another attempt has taken it over.
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  // Whether this process still holds the lease. held() reads no file unless this process was suspended: its answer may
  // be LeaseTimes::look old. held_now() reads the file; it recreates one that was removed. Any thread may call them.
  bool held() const;
  bool held_now() const;
  // Throws Error with problem() if the lease is lost.
  void require_held() const;
  // What to say when the lease is lost: who has it now.
  std::string problem() const;
  const LeaseId& id() const { return id_; }

 private:
  void acquire(const LeaseOptions& options);
  bool create(int64_t number) const;
  void keep();

  LeaseTimes times_;
  LeaseId id_;
  std::string text_;  // of the file
  mutable std::atomic<bool> fenced_{false};
  mutable std::atomic<double> confirmed_{0};  // when the thread ran last, having looked if it was suspended before

  std::mutex mutex_;  // guards stopping_
  std::condition_variable stop_requested_;
  bool stopping_ = false;
  std::thread thread_;
};

enum class LeaseState { none, ended, alive, gone, unknown };

// The state of the lease of a run directory: it never had one; its holder ended it; is alive; is gone without ending
// it; or this cannot be known here, because the holder is on another machine and the directory cannot be written in.
LeaseState lease_state(const std::filesystem::path& run);

// The batch job of this process: SLURM_JOB_ID; empty if there is none.
std::string batch_job();

}  // namespace tmamba
