// class NcclCommunicator: collectives on device tensors over NCCL.
//
// Each communicator has its own stream. An operation waits for the work that the compute stream has at the time of the
// call. Work::wait() makes later work of the compute stream wait for the operation; it does not block the host.
//
// NCCL calls
// - Equal shards use NCCL's collective. Unequal shards use one group of reduces to, or broadcasts from, each owner,
//   which moves the same number of bytes.
// - Sums are in NCCL's order, which follows its rings: it is fixed for a given machine, size and NCCL version, but it
// is
//   not rank order. bfloat16 is rounded after each addition.
// - Maxima and minima of floating-point types (NCCL's may drop a NaN) and all reductions of uint16 (NCCL does not
//   support it) gather the terms and combine them in rank order, as on the host.
//
// Every communicator has a host communicator over MPI for NCCL's bootstrap and for barriers.
#pragma once

#include "dist/comm/communicator.h"
#include "dist/comm/nccl_runtime.h"
#include "kernels/base/buffer.h"
#include "kernels/base/recording.h"

namespace tmamba {

class NcclCommunicator final : public Communicator {
 public:
  // Collective over the ranks of `host`, a communicator for host tensors that nothing else may use. `world_rank` is
  // this process's rank in the job. Throws Error if NCCL cannot connect the ranks.
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
  // Blocks the host until this rank's operations on this communicator are complete and all ranks have arrived.
  void barrier() override;
  // Returns a SelfCommunicator if no other rank has the same color.
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override;

 private:
  class Pending;

  void connect();
  // begin() counts an operation and makes the stream wait for the compute stream; finish() returns its Work.
  void begin(Collective op, int64_t bytes, int64_t received_bytes);
  Work finish();
  // Counts the operation and reports it to the watchdog, each time it is issued or replayed.
  void note(Collective op, int64_t bytes, int64_t received_bytes);
  void join();
  void check(ncclResult_t code, const char* call);
  void check(cudaError_t status, const char* call);
  // Runs `calls` as one NCCL group.
  template <class F>
  void group(F calls);

  // out = elements [begin, begin + out.numel()) of the reduction of `in`, combined in rank order.
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
  Buffer count_;                           // number of finished operations, on the device
  Watchdog::Handle watched_;
  OperationRecord current_;  // the last operation begun
  Buffer gathered_;          // the terms of reduce_gathered
};

}  // namespace tmamba
