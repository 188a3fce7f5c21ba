// class MpiProgress is the progress engine for all started MPI operations of this process, over all communicators.
//
// An operation is a list of stages. A stage posts point-to-point messages; when all of them are complete, the next
// stage runs. Waiting for one operation progresses all of them, so two ranks may wait in different orders without a
// deadlock.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/comm/watchdog.h"

namespace tmamba {

struct MpiOperation;
using MpiOperationPtr = std::shared_ptr<MpiOperation>;

struct MpiOperation {
  using Stage = std::function<void(const MpiOperationPtr&)>;

  std::string label;  // "all_reduce #12 on "sp", rank 1 of 4", for messages
  Watchdog::Handle watched;
  OperationRecord record;
  MPI_Comm comm = MPI_COMM_NULL;
  int tag = 0;
  std::vector<Stage> stages;
  std::vector<std::unique_ptr<std::byte[]>> scratch;

  // Uninitialized memory that the operation owns.
  std::byte* take_scratch(int64_t bytes);

  // Managed by MpiProgress.
  size_t next_stage = 0;
  int pending = 0;  // incomplete requests of the current stage
  bool abandoned = false;
  bool done() const { return pending == 0 && next_stage == stages.size(); }
};

class MpiProgress {
 public:
  // Longer messages are split into chunks of at most `chunk_bytes` bytes, because MPI counts are 32-bit.
  MpiProgress(int64_t chunk_bytes, std::shared_ptr<Watchdog> watchdog);

  // Runs the first stages of an operation and progresses the others without blocking. Like wait() and drain() it throws
  // Error after a failure.
  void start(const MpiOperationPtr& operation);
  // Blocks until the operation is complete.
  void wait(const MpiOperationPtr& operation);
  // Blocks until every operation is complete.
  void drain();
  // Aborts an operation without waiting: cancels its receives and runs no further stage.
  void abandon(const MpiOperationPtr& operation) noexcept;

  // For stages. Messages between two ranks with the same tag match in the order posted; `peer` is a rank of the
  // operation's communicator. Messages of 0 bytes are neither sent nor received.
  void send(const MpiOperationPtr& operation, const void* data, int64_t bytes, int peer);
  void receive(const MpiOperationPtr& operation, void* data, int64_t bytes, int peer);
  // Makes the stage wait for this request too.
  void add_request(const MpiOperationPtr& operation, MPI_Request request);

  // Nothing is in flight and nothing has failed: MPI may be finalized.
  bool clean() const { return requests_.empty() && failure_.empty(); }
  Watchdog& watchdog() { return *watchdog_; }
  // Throws Error with the first failure, if there was one.
  void check_alive() const;

 private:
  struct Posted {
    MpiOperationPtr operation;
    int peer = 0;
    int expected = -1;  // bytes of a receive, -1 for anything else
  };

  void run_stages(const MpiOperationPtr& operation);
  // Handles completed requests; with `block` waits for at least one.
  void progress(bool block);
  void complete(size_t index, const MPI_Status& status);
  void remove_completed();
  [[noreturn]] void fail(const std::string& message);

  int64_t chunk_bytes_;
  std::shared_ptr<Watchdog> watchdog_;
  std::vector<MPI_Request> requests_;
  std::vector<Posted> posted_;  // one per request
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
  std::string failure_;  // the first failure; empty if there was none
};

}  // namespace tmamba
