// class MpiProgress: drives every started MPI operation of this process, on whichever communicator it is.
//
// An operation is a list of stages. A stage posts point-to-point messages; when all of them are complete the next stage
// runs. Whoever waits for one operation moves all of them along, so that two ranks may wait in different orders
// without a deadlock.
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

  // Uninitialised memory that lives as long as the operation.
  std::byte* take_scratch(int64_t bytes);

  // Kept by MpiProgress.
  size_t next_stage = 0;
  int pending = 0;
  bool abandoned = false;
  bool done() const { return pending == 0 && next_stage == stages.size(); }
};

class MpiProgress {
 public:
  // Messages travel in chunks of at most `chunk_bytes`, because MPI counts are 32-bit.
  MpiProgress(int64_t chunk_bytes, std::shared_ptr<Watchdog> watchdog);

  // Runs the first stages of an operation, and moves the others along without blocking.
  void start(const MpiOperationPtr& operation);
  // Blocks until the operation is done.
  void wait(const MpiOperationPtr& operation);
  // Blocks until every operation is done.
  void drain();
  // Gives an operation up without waiting: its receives are cancelled, its further stages never run.
  void abandon(const MpiOperationPtr& operation) noexcept;

  // For stages. Messages between two ranks with the same tag match in the order posted; `peer` is a rank of the
  // operation's communicator. A message of no bytes is not sent, and not expected by its receiver.
  void send(const MpiOperationPtr& operation, const void* data, int64_t bytes, int peer);
  void receive(const MpiOperationPtr& operation, void* data, int64_t bytes, int peer);
  // Lets the stage end only when this request is complete.
  void add_request(const MpiOperationPtr& operation, MPI_Request request);

  // Nothing in flight, nothing given up: MPI may be finalized.
  bool clean() const { return requests_.empty() && failure_.empty(); }
  Watchdog& watchdog() { return *watchdog_; }
  // Throws the first failure again, if there was one.
  void check_alive() const;

 private:
  struct Posted {
    MpiOperationPtr operation;
    int peer = 0;
    int expected = -1;  // bytes of a receive, -1 for anything else
  };

  void run_stages(const MpiOperationPtr& operation);
  // Handles what has completed; with `block` waits until something has.
  void progress(bool block);
  void complete(size_t index, const MPI_Status& status);
  void remove_completed();
  [[noreturn]] void fail(const std::string& message);

  int64_t chunk_bytes_;
  std::shared_ptr<Watchdog> watchdog_;
  std::vector<MPI_Request> requests_;  // beside posted_
  std::vector<Posted> posted_;
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
  std::string failure_;
};

}  // namespace tmamba
