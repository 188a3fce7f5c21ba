// class MpiCommunicator: collectives on host tensors over MPI.
//
// All of them are built from non-blocking point-to-point messages, so that the order of every sum is ours: rank 0's
// term first, whatever the sizes, the timing and the MPI library.
#pragma once

#include <mpi.h>

#include "dist/comm/communicator.h"
#include "dist/comm/mpi_progress.h"

namespace tmamba {

class MpiCommunicator final : public Communicator {
 public:
  // Takes over `comm`, which must not be used by anything else. Not collective.
  MpiCommunicator(MPI_Comm comm, std::string name, std::shared_ptr<MpiProgress> progress);
  ~MpiCommunicator() override;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  Work all_reduce(Tensor x, ReduceOp op) override;
  Work reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) override;
  Work all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) override;
  Work broadcast(Tensor x, int root) override;
  Work all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                  std::span<const int64_t> in_counts) override;
  Work send_recv(std::span<const Message> messages) override;
  void barrier() override;
  // A SelfCommunicator for a rank alone with its color.
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override;

 private:
  // Prepares an operation on `bytes` with a tag of its own, and counts what it receives.
  MpiOperationPtr begin(Collective op, int64_t bytes, int64_t received_bytes);
  MpiOperationPtr begin_uncounted(Collective op, int64_t bytes);
  Work start(const MpiOperationPtr& operation);
  void add_barrier(const MpiOperationPtr& operation);
  // Adds the stages that leave the sum over ranks of each rank's piece of `in` in `out`, on the piece's owner.
  void add_reduce_scatter(const MpiOperationPtr& operation, Tensor out, ConstTensor in, std::vector<int64_t> counts,
                          ReduceOp op);
  // Adds the stage that sends `in` to all, and receives the pieces of all others in their places in `out`.
  void add_all_gather(const MpiOperationPtr& operation, Tensor out, ConstTensor in, std::vector<int64_t> counts);

  MPI_Comm comm_;
  std::string name_;
  std::shared_ptr<MpiProgress> progress_;
  Watchdog::Handle watched_;
  int rank_ = 0;
  int size_ = 1;
  int64_t sequence_ = 0;
  int64_t next_tag_ = 0;
};

}  // namespace tmamba
