#include "dist/sequence/exchange_staging.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "dist/comm/collective_args.h"

namespace tmamba {

Tensor Staging::take_like(const ConstTensor& x) const {
  switch (x.dims()) {
    case 2:
      return take({x.size(0), x.size(1)}, x.dtype());
    case 3:
      return take({x.size(0), x.size(1), x.size(2)}, x.dtype());
    case 4:
      return take({x.size(0), x.size(1), x.size(2), x.size(3)}, x.dtype());
    default:
      throw Error(str("a tensor ", x.shape(), " has ", x.dims(), " dimensions; 2 to 4 can be staged"));
  }
}

ConstTensor Staging::contiguous(const ConstTensor& x) const {
  if (x.contiguous()) return x;
  const Tensor staged = take_like(x);
  copy(staged, x);
  return staged;
}

void Staging::copy(const Tensor& y, const ConstTensor& x) const {
  if (measuring() || x.numel() == 0 || y.raw() == x.raw()) return;
  ops_->copy(y, x);
}

void Staging::add(const Tensor& y, const ConstTensor& x) const {
  if (!measuring() && x.numel() > 0) ops_->add(y, x);
}

void Staging::zero(const Tensor& x) const {
  if (!measuring() && x.numel() > 0) ops_->zero(x);
}

void Staging::scan(const Tensor& out_KBHE, const ConstTensor& in_KBHE, const ConstTensor& decay_KBH,
                   bool reverse) const {
  if (!measuring() && in_KBHE.numel() > 0) ops_->scan(out_KBHE, in_KBHE, decay_KBH, reverse);
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

Pending MessageGroup::start(std::function<void()> then) && {
  std::stable_sort(messages_.begin(), messages_.end(),
                   [](const Message& a, const Message& b) { return a.peer < b.peer; });
  return start_one(
      staging_, [comm = comm_, messages = std::move(messages_)] { return comm->send_recv(messages); },
      [staging = staging_, unpack = std::move(unpack_), then = std::move(then)] {
        for (const auto& [place, staged] : unpack) staging.copy(place, staged);
        if (then) then();
      });
}

Pending start_one(const Staging& staging, std::function<Work()> issue, std::function<void()> then) {
  if (staging.measuring()) return {};
  return Pending({[issue = std::move(issue)] {
                    Pending::Works works;
                    works.push_back(issue());
                    return works;
                  },
                  [then = std::move(then)] {
                    if (then) then();
                    return Pending::Works();
                  }});
}

Tensor FlatCursor::next(std::initializer_list<int64_t> sizes) {
  const int64_t count = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  const Tensor slice = flat_slice(flat_, begin_, count).view(sizes);
  begin_ += count;
  return slice;
}

}  // namespace tmamba
