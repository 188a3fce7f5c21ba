// class SelfCommunicator: a communicator of a single rank, without any library, for tensors on any device. Operations
// are copies; they are complete when the call returns on the host, and ordered as copy_blocking is on a device.
#pragma once

#include "dist/comm/communicator.h"

namespace tmamba {

class SelfCommunicator final : public Communicator {
 public:
  explicit SelfCommunicator(std::string name) : name_(std::move(name)) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& name() const override { return name_; }

  Work all_reduce(Tensor x, ReduceOp op) override;
  Work reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) override;
  Work all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) override;
  Work broadcast(Tensor x, int root) override;
  Work all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                  std::span<const int64_t> in_counts) override;
  Work send_recv(std::span<const Message> messages) override;
  void barrier() override;
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override;

 private:
  void count(Collective op) { ++traffic_.calls[static_cast<size_t>(op)]; }
  void copy(Collective op, const Tensor& to, const ConstTensor& from) const;

  std::string name_;
};

}  // namespace tmamba
