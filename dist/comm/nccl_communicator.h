// class NcclCommunicator: collectives on device tensors over NCCL.
//
// Each communicator has a stream of its own. An operation starts when what the host has issued to the compute stream
// before it is done; Work::wait() puts what is issued later behind it, and does not block the host.
//
// What NCCL runs
// - Equal pieces: its collective. Unequal pieces: one group of a reduce, or a broadcast, to or from each owner, which
//   moves as many bytes as the collective.
// - Sums: NCCL's order, which follows its rings: fixed for a given machine, sizes and NCCL, but not rank 0 first.
//   bfloat16 is rounded after each addition.
// - Maxima and minima of floating types, of which NCCL's would lose a NaN, and all reductions of uint16, which NCCL
// does
//   not know: terms are gathered, and combined in rank order as on the host.
//
// MPI carries what NCCL needs to find the other ranks, and barriers: each communicator has a twin on the host.
#pragma once

#include "dist/comm/communicator.h"
#include "dist/comm/nccl_runtime.h"
#include "kernels/base/buffer.h"
#include "kernels/base/recording.h"

namespace tmamba {

class NcclCommunicator final : public Communicator {
 public:
  // Collective over the ranks of `host`, a communicator on host tensors, used for nothing else from now on.
  // `world_rank` is this process's in the job. Throws Error where NCCL cannot connect the ranks.
  NcclCommunicator(std::unique_ptr<Communicator> host, std::string name, int world_rank,
                   std::shared_ptr<NcclRuntime> runtime);
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  const std::string& name() const override { return name_; }

  Work all_reduce(Tensor x, ReduceOp op) override;
  Work reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) override;
  Work all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) override;
  Work broadcast(Tensor x, int root) override;
  Work all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                  std::span<const int64_t> in_counts) override;
  Work send_recv(std::span<const Message> messages) override;
  // Blocks the host until this rank's operations here are done and all ranks have come.
  void barrier() override;
  // A SelfCommunicator for a rank alone with its color.
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override;

 private:
  class Pending;

  void connect();
  // Counts an operation, and puts the stream behind the compute stream. finish() ends what begin() began.
  void begin(Collective op, int64_t bytes, int64_t received_bytes);
  Work finish();
  // What the host keeps of an operation each time it is issued.
  void note(Collective op, int64_t bytes, int64_t received_bytes);
  void join();
  void check(ncclResult_t code, const char* call);
  void check(cudaError_t status, const char* call);
  // Runs `calls`, which issue several operations of NCCL, as one.
  template <class F>
  void group(F calls);

  // out = elements [begin, begin + out.numel()) of the reduction of `in`, in rank order.
  void reduce_gathered(ReduceOp op, const Tensor& out, const ConstTensor& in, int64_t begin);
  void send(const ConstTensor& x, int peer);
  void receive(const Tensor& x, int peer);
  void copy(const Tensor& to, const ConstTensor& from);
  void synchronize();
  std::string label() const;

  std::unique_ptr<Communicator> host_;
  const std::string name_;
  const int world_rank_;
  std::shared_ptr<NcclRuntime> runtime_;
  ncclComm_t comm_ = nullptr;  // owned by runtime_
  int handle_ = -1;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t ready_ = nullptr;
  Watchdog::Finished* finished_ = nullptr;
  int64_t* finished_on_device_ = nullptr;  // the same memory
  Buffer count_;                           // of operations finished, on the device
  Watchdog::Handle watched_;
  OperationRecord current_;  // the last one begun
  Buffer gathered_;          // the terms of reduce_gathered
};

}  // namespace tmamba
