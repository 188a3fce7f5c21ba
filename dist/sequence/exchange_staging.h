// What the exchange verbs share: staging memory, and groups of messages through it.
#pragma once

#include <initializer_list>
#include <utility>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/sequence/exchange.h"
#include "kernels/base/buffer.h"

namespace tmamba {

// Scratch memory lent to one exchange until it is finished, and its work on data. Over a measuring arena memory is
// counted and no data is touched; what is taken depends on sizes and strides alone, so that both count the same. Copied
// into the rounds of a Pending.
class Staging {
 public:
  Staging(Arena& scratch, const ExchangeOps& ops) : scratch_(&scratch), ops_(&ops), measuring_(scratch.measuring()) {}

  bool measuring() const { return measuring_; }
  Tensor take(std::initializer_list<int64_t> sizes, DType dtype) const { return scratch_->take(sizes, dtype); }
  // A contiguous tensor of the sizes and type of x, which has 2 to 4 dimensions.
  Tensor take_like(const ConstTensor& x) const;
  // x itself where it is contiguous, else a contiguous copy.
  ConstTensor contiguous(const ConstTensor& x) const;

  // Nothing where both are the same memory.
  void copy(const Tensor& y, const ConstTensor& x) const;
  void add(const Tensor& y, const ConstTensor& x) const;
  void zero(const Tensor& x) const;
  void scan(const Tensor& out_KBHE, const ConstTensor& in_KBHE, const ConstTensor& decay_KBH, bool reverse) const;

 private:
  Arena* scratch_;
  const ExchangeOps* ops_;
  bool measuring_;
};

// One send_recv group. Tensors may be strided. Messages between two ranks match in the order in which both name them;
// they are issued by peer, then in that order, as a plan lists them. Empty tensors are no messages.
class MessageGroup {
 public:
  MessageGroup(Staging staging, Communicator& comm) : staging_(staging), comm_(&comm) {}
  void send(int peer, const ConstTensor& x);
  void receive(int peer, const Tensor& x);
  // What will have arrived when the group is done, in staging memory with the sizes of x.
  ConstTensor receive_beside(int peer, const ConstTensor& x);
  // All ranks call it, also those without messages. `then`: what to do when everything has arrived.
  Pending start(std::function<void()> then = {}) &&;

 private:
  Staging staging_;
  Communicator* comm_;
  std::vector<Message> messages_;
  std::vector<std::pair<Tensor, ConstTensor>> unpack_;  // place, staged
};

// One collective and what to do when it is done.
Pending start_one(const Staging& staging, std::function<Work()> issue, std::function<void()> then);

// Walks along a contiguous tensor, piece by piece.
class Pieces {
 public:
  explicit Pieces(const Tensor& flat) : flat_(flat) {}
  Tensor next(std::initializer_list<int64_t> sizes);

 private:
  Tensor flat_;
  int64_t begin_ = 0;
};

}  // namespace tmamba
