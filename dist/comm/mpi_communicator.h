// class MpiCommunicator: collectives on host tensors over MPI.
//
// All of them are built from non-blocking point-to-point messages, so that every sum is in rank order, independent of
// sizes, timing and the MPI library.
#pragma once

#include <mpi.h>

#include "dist/comm/communicator.h"
#include "dist/comm/mpi_progress.h"

namespace tmamba {

class MpiCommunicator final : public Communicator {
 public:
  // Takes ownership of `comm`, which nothing else may use. Not collective.
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
  // Returns a SelfCommunicator if no other rank has the same color.
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override;

 private:
  // Creates an operation on `bytes` bytes with its own tag and counts the received bytes.
  MpiOperationPtr begin(Collective op, int64_t bytes, int64_t received_bytes);
  MpiOperationPtr begin_uncounted(Collective op, int64_t bytes);
  Work start(const MpiOperationPtr& operation);
  void add_barrier(const MpiOperationPtr& operation);
  // Adds the stages that write the reduction of this rank's shard of `in` over all ranks to `out`.
  void add_reduce_scatter(const MpiOperationPtr& operation, Tensor out, ConstTensor in, std::vector<int64_t> counts,
                          ReduceOp op);
  // Adds the stage that sends `in` to all ranks and receives all other shards of `out`.
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
