// class AbsentCommunicator stands for one rank of an axis whose other ranks do not exist. A dry run uses it to measure
// any rank of any layout on one machine. It returns its rank and size; every collective throws Error.
#pragma once

#include "dist/comm/communicator.h"

namespace tmamba {

class AbsentCommunicator final : public Communicator {
 public:
  AbsentCommunicator(std::string name, int rank, int size);

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
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override;

 private:
  std::string name_;
  int rank_, size_;
};

}  // namespace tmamba
