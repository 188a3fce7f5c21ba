// class NcclRuntime: what the NCCL communicators of this process share: the compute stream they are ordered with,
// events, the thread that finds errors NCCL meets on its own, and the failure after which nothing more is started.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dist/comm/nccl_check.h"
#include "dist/comm/watchdog.h"

namespace tmamba {

class NcclRuntime {
 public:
  // `rank_name`: "rank 1 on HOST", for messages. `compute`: the stream that makes and takes what is exchanged. The
  // current GPU must be this rank's.
  NcclRuntime(std::string rank_name, std::shared_ptr<Watchdog> watchdog, cudaStream_t compute);
  ~NcclRuntime();
  NcclRuntime(const NcclRuntime&) = delete;
  NcclRuntime& operator=(const NcclRuntime&) = delete;

  const std::string& rank_name() const { return rank_name_; }
  Watchdog& watchdog() { return *watchdog_; }
  cudaStream_t compute() const { return compute_; }

  // Host memory that the device writes and any thread reads without a call of CUDA. It is never freed: where operations
  // are given up, the device may yet write it.
  Watchdog::Finished* make_finished() const;

  cudaEvent_t take_event();
  void give_event(cudaEvent_t event) { events_.push_back(event); }
  // A communicator that the thread looks after, until retire(), which frees it: in peace, or by aborting it where there
  // was a failure. adopt() returns its handle here.
  int adopt(ncclComm_t comm, const std::string& name);
  void retire(int handle, bool in_peace) noexcept;

  // Throws the first failure again, if there was one.
  void check_alive() const;
  bool alive() const { return failure_.empty(); }
  // Gives up all operations in flight on all communicators: other ranks may never arrive in them.
  void abandon(const std::string& operation) noexcept;
  [[noreturn]] void fail(const std::string& message);

 private:
  struct Adopted {
    ncclComm_t comm;
    std::string name;
  };

  void look_for_errors();

  const std::string rank_name_;
  const std::shared_ptr<Watchdog> watchdog_;
  const cudaStream_t compute_;
  std::vector<cudaEvent_t> events_;
  std::string failure_;
  int next_handle_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable stop_requested_;
  bool stopping_ = false;
  std::map<int, Adopted> adopted_;
  std::thread thread_;
};

}  // namespace tmamba
