// class MutedCommunicator: forwards every operation to another communicator; while muted it does nothing and leaves
// outputs unchanged. The difference in step time with and without is the exposed communication. Results computed while
// muted are meaningless.
#pragma once

#include "dist/comm/communicator.h"

namespace tmamba {

class MutedCommunicator final : public Communicator {
 public:
  // `inner` must outlive this.
  explicit MutedCommunicator(Communicator& inner) : inner_(inner) {}
  // Must be called with the same value on all ranks.
  void mute(bool on) { muted_ = on; }

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  const std::string& name() const override { return inner_.name(); }

  Work all_reduce(Tensor x, ReduceOp op) override { return muted_ ? Work() : inner_.all_reduce(x, op); }
  Work reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) override {
    return muted_ ? Work() : inner_.reduce_scatter(out, in, counts);
  }
  Work all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) override {
    return muted_ ? Work() : inner_.all_gather(out, in, counts);
  }
  Work broadcast(Tensor x, int root) override { return muted_ ? Work() : inner_.broadcast(x, root); }
  Work all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                  std::span<const int64_t> in_counts) override {
    return muted_ ? Work() : inner_.all_to_all(out, out_counts, in, in_counts);
  }
  Work send_recv(std::span<const Message> messages) override { return muted_ ? Work() : inner_.send_recv(messages); }
  void barrier() override { inner_.barrier(); }
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override {
    return inner_.split(color, key, name);
  }

 private:
  Communicator& inner_;
  bool muted_ = false;
};

}  // namespace tmamba
