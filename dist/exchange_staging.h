// What the exchange verbs share: staging memory, and groups of messages through it.
#pragma once

#include <initializer_list>
#include <utility>
#include <vector>

#include "dist/communicator.h"
#include "dist/exchange.h"
#include "kernels/base/buffer.h"

namespace tmamba {

// Scratch memory lent to one verb, and the verb's work on data. Over a measuring arena memory is counted and no data is
// touched; what is taken depends on sizes and strides alone, so that both count the same.
class Staging {
 public:
  Staging(Arena& scratch, const ExchangeOps& ops) : scratch_(scratch), ops_(ops), mark_(scratch.used()) {}
  ~Staging() { scratch_.rewind(mark_); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  bool measuring() const { return scratch_.measuring(); }
  Tensor take(std::initializer_list<int64_t> sizes, DType dtype) { return scratch_.take(sizes, dtype); }
  // A contiguous tensor of the sizes and type of x, which has 2 to 4 dimensions.
  Tensor take_like(const ConstTensor& x);
  // x itself where it is contiguous, else a contiguous copy.
  ConstTensor contiguous(const ConstTensor& x);

  // Nothing where both are the same memory.
  void copy(const Tensor& y, const ConstTensor& x) const;
  void add(const Tensor& y, const ConstTensor& x) const;
  void zero(const Tensor& x) const;
  void scan(const Tensor& out_KBHE, const ConstTensor& in_KBHE, const ConstTensor& decay_KBH, bool reverse) const;

  // The scratch memory for a shorter while: `Staging inner = staging.nested()`.
  Staging nested() const { return {scratch_, ops_}; }

 private:
  Arena& scratch_;
  const ExchangeOps& ops_;
  size_t mark_;
};

// One send_recv group. Tensors may be strided. Messages between two ranks match in the order in which both name them;
// they are issued by peer, then in that order, as a plan lists them. Empty tensors are no messages.
class MessageGroup {
 public:
  MessageGroup(Staging& staging, Communicator& comm) : staging_(staging), comm_(comm) {}
  void send(int peer, const ConstTensor& x);
  void receive(int peer, const Tensor& x);
  // What will have arrived after run(), in staging memory with the sizes of x.
  ConstTensor receive_beside(int peer, const ConstTensor& x);
  // All ranks call it, also those without messages.
  void run();

 private:
  Staging& staging_;
  Communicator& comm_;
  std::vector<Message> messages_;
  std::vector<std::pair<Tensor, ConstTensor>> unpack_;  // place, staged
};

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
