// Staging memory and message groups of the exchanges.
#pragma once

#include <initializer_list>
#include <utility>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/sequence/exchange.h"
#include "kernels/base/buffer.h"

namespace tmamba {

// Takes scratch memory for one exchange and runs its operations on data. With a measuring arena it counts memory and
// touches no data. The memory taken depends only on sizes and strides, so measuring and running take the same. The
// rounds of a Pending hold copies.
class Staging {
 public:
  Staging(Arena& scratch, const ExchangeOps& ops) : scratch_(&scratch), ops_(&ops), measuring_(scratch.measuring()) {}

  bool measuring() const { return measuring_; }
  Tensor take(std::initializer_list<int64_t> sizes, DType dtype) const { return scratch_->take(sizes, dtype); }
  // A contiguous tensor with the sizes and type of x, which has 2 to 4 dimensions.
  Tensor take_like(const ConstTensor& x) const;
  // x if it is contiguous, else a contiguous copy.
  ConstTensor contiguous(const ConstTensor& x) const;

  // Does nothing if both are the same memory.
  void copy(const Tensor& y, const ConstTensor& x) const;
  void add(const Tensor& y, const ConstTensor& x) const;
  void zero(const Tensor& x) const;
  void scan(const Tensor& out_KBHE, const ConstTensor& in_KBHE, const ConstTensor& decay_KBH, bool reverse) const;

 private:
  Arena* scratch_;
  const ExchangeOps* ops_;
  bool measuring_;
};

// One send_recv group. Tensors may be strided. Messages between two ranks match in the order of the calls. They are
// issued sorted by peer, then in that order, as a plan lists them. Empty tensors are skipped.
class MessageGroup {
 public:
  MessageGroup(Staging staging, Communicator& comm) : staging_(staging), comm_(&comm) {}
  void send(int peer, const ConstTensor& x);
  void receive(int peer, const Tensor& x);
  // Receives into staging memory of the sizes of x; the result is valid when the group has finished.
  ConstTensor receive_beside(int peer, const ConstTensor& x);
  // Collective: ranks without messages call it too. `then` runs when all messages have arrived.
  Pending start(std::function<void()> then = {}) &&;

 private:
  Staging staging_;
  Communicator* comm_;
  std::vector<Message> messages_;
  std::vector<std::pair<Tensor, ConstTensor>> unpack_;  // strided target, staged message
};

// Starts one collective; `then` runs when it has finished.
Pending start_one(const Staging& staging, std::function<Work()> issue, std::function<void()> then);

// Returns consecutive slices of a contiguous tensor.
class FlatCursor {
 public:
  explicit FlatCursor(const Tensor& flat) : flat_(flat) {}
  Tensor next(std::initializer_list<int64_t> sizes);

 private:
  Tensor flat_;
  int64_t begin_ = 0;
};

}  // namespace tmamba
