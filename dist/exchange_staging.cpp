#include "dist/exchange_staging.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "dist/collective_args.h"

namespace tmamba {

Tensor Staging::take_like(const ConstTensor& x) {
  switch (x.dims()) {
    case 2:
      return take({x.size(0), x.size(1)}, x.dtype());
    case 3:
      return take({x.size(0), x.size(1), x.size(2)}, x.dtype());
    case 4:
      return take({x.size(0), x.size(1), x.size(2), x.size(3)}, x.dtype());
    default:
      throw Error(str("a tensor ", x.shape(), " cannot be staged"));
  }
}

ConstTensor Staging::contiguous(const ConstTensor& x) {
  if (x.contiguous()) return x;
  const Tensor staged = take_like(x);
  copy(staged, x);
  return staged;
}

void Staging::copy(const Tensor& y, const ConstTensor& x) const {
  if (measuring() || x.numel() == 0 || y.raw() == x.raw()) return;
  ops_.copy(y, x);
}

void Staging::add(const Tensor& y, const ConstTensor& x) const {
  if (!measuring() && x.numel() > 0) ops_.add(y, x);
}

void Staging::zero(const Tensor& x) const {
  if (!measuring() && x.numel() > 0) ops_.zero(x);
}

void Staging::scan(const Tensor& out_KBHE, const ConstTensor& in_KBHE, const ConstTensor& decay_KBH,
                   bool reverse) const {
  if (!measuring() && in_KBHE.numel() > 0) ops_.scan(out_KBHE, in_KBHE, decay_KBH, reverse);
}

void MessageGroup::send(int peer, const ConstTensor& x) {
  if (x.numel() > 0) messages_.push_back({.peer = peer, .recv = {}, .send = staging_.contiguous(x)});
}

void MessageGroup::receive(int peer, const Tensor& x) {
  if (x.numel() == 0) return;
  const Tensor arrival = x.contiguous() ? x : staging_.take_like(x);
  messages_.push_back({.peer = peer, .recv = arrival, .send = {}});
  if (!x.contiguous()) unpack_.emplace_back(x, arrival);
}

ConstTensor MessageGroup::receive_beside(int peer, const ConstTensor& x) {
  if (x.numel() == 0) return {};
  const Tensor arrival = staging_.take_like(x);
  messages_.push_back({.peer = peer, .recv = arrival, .send = {}});
  return arrival;
}

void MessageGroup::run() {
  if (staging_.measuring()) return;
  std::stable_sort(messages_.begin(), messages_.end(),
                   [](const Message& a, const Message& b) { return a.peer < b.peer; });
  comm_.send_recv(messages_).wait();
  for (const auto& [place, staged] : unpack_) staging_.copy(place, staged);
}

Tensor Pieces::next(std::initializer_list<int64_t> sizes) {
  const int64_t count = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  const Tensor piece = flat_slice(flat_, begin_, count).view(sizes);
  begin_ += count;
  return piece;
}

}  // namespace tmamba
