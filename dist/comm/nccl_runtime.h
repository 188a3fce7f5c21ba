// class NcclRuntime: the state that the NCCL communicators of this process share: the compute stream, a pool of events,
// the thread that polls for asynchronous NCCL errors, and the first failure, after which no operation is started.
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
  // `rank_name` is "rank 1 on HOST", for messages. `compute` is the stream that produces and consumes the tensors. The
  // current CUDA device must be this rank's.
  NcclRuntime(std::string rank_name, std::shared_ptr<Watchdog> watchdog, cudaStream_t compute);
  ~NcclRuntime();
  NcclRuntime(const NcclRuntime&) = delete;
  NcclRuntime& operator=(const NcclRuntime&) = delete;

  const std::string& rank_name() const { return rank_name_; }
  Watchdog& watchdog() { return *watchdog_; }
  cudaStream_t compute() const { return compute_; }

  // A counter in host memory that the device writes and any thread can read without a CUDA call. It is never freed,
  // because the device may still write it after operations were aborted.
  Watchdog::Finished* make_finished_counter() const;

  cudaEvent_t take_event();
  void give_event(cudaEvent_t event) { events_.push_back(event); }
  // adopt() takes ownership of a communicator, polls it for errors and returns its handle. retire() frees it:
  // gracefully with ncclCommDestroy, else with ncclCommAbort.
  int adopt(ncclComm_t comm, const std::string& name);
  void retire(int handle, bool graceful) noexcept;

  // Throws Error with the first failure, if there was one.
  void check_alive() const;
  bool alive() const { return failure_.empty(); }
  // Aborts all operations in flight on all communicators, because the other ranks may never join them.
  void abandon(const std::string& operation) noexcept;
  [[noreturn]] void fail(const std::string& message);

 private:
  struct Adopted {
    ncclComm_t comm;
    std::string name;
  };

  void poll_errors();

  const std::string rank_name_;
  const std::shared_ptr<Watchdog> watchdog_;
  const cudaStream_t compute_;
  std::vector<cudaEvent_t> events_;
  std::string failure_;
  int next_handle_ = 0;

  std::mutex mutex_;  // guards the members below
  std::condition_variable stop_requested_;
  bool stopping_ = false;
  std::map<int, Adopted> adopted_;
  std::thread thread_;
};

}  // namespace tmamba
