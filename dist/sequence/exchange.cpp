#include "dist/sequence/exchange.h"

#include <algorithm>

#include "dist/sequence/exchange_staging.h"
#include "kernels/base/trace_range.h"

namespace tmamba {

void Pending::advance() {
  const TraceRange trace("exchange round");
  for (Work& work : works_) work.wait();
  works_.clear();
  if (next_ < rounds_.size()) works_ = rounds_[next_++]();
}

void Pending::issue_last() {
  while (next_ + 1 < rounds_.size()) advance();
}

void Pending::finish() {
  while (!works_.empty() || next_ < rounds_.size()) advance();
}

SequenceExchange::SequenceExchange(const SequenceLayout& layout, Communicator& sp, ExchangeOps ops)
    : layout_(layout), sp_(sp), ops_(std::move(ops)) {
  TM_CHECK(sp_.size() == layout_.ranks(), "a layout for ", layout_.ranks(), " ranks on \"", sp_.name(),
           "\", which has ", sp_.size());
}

void SequenceExchange::check_sizes(const char* verb, const char* what, const ConstTensor& x,
                                   std::initializer_list<int64_t> sizes) const {
  bool same = x.dims() == static_cast<int>(sizes.size());
  int dim = 0;
  for (int64_t size : sizes) same = same && x.size(dim++) == size;
  if (same) return;
  const ConstTensor expected(nullptr, sizes, x.dtype(), x.device());
  throw Error(str(verb, " on \"", sp_.name(), "\", rank ", rank(), " of ", sp_.size(), ": ", what, " is ", x.shape(),
                  ", expected ", expected.shape()));
}

namespace {

// The rows of a halo in the local rows of the rank that owns them.
template <class View>
View halo_rows(const SequenceLayout& layout, const View& pre_BnX, const Halo& halo) {
  return pre_BnX.slice(1, layout.local_row(halo.rows.begin), halo.rows.size());
}

}  // namespace

Pending SequenceExchange::conv_halo(Arena& scratch, Tensor halo_sBWX, ConstTensor pre_BnX) {
  const TraceRange trace("conv_halo");
  TM_CHECK(pre_BnX.dims() == 3, "conv_halo: rows before the convolution are [B, n, X], got ", pre_BnX.shape());
  const int64_t width = layout_.spec().conv_width - 1;
  check_sizes("conv_halo", "the local rows", pre_BnX, {pre_BnX.size(0), local_tokens(), pre_BnX.size(2)});
  check_sizes("conv_halo", "the halo", halo_sBWX, {std::ssize(segments()), pre_BnX.size(0), width, pre_BnX.size(2)});
  const Staging staging(scratch, ops_);
  MessageGroup group(staging, sp_);
  const auto halo_of = [&](int segment) { return halo_sBWX.select(0, local_index(layout_.segment(segment))); };
  if (segments().front().index == 0) staging.zero(halo_of(0));
  for (const Halo& h : layout_.halos()) {
    if (h.rows.empty()) continue;
    if (h.from_rank == rank() && h.to_rank == rank()) {
      staging.copy(halo_of(h.to_segment), halo_rows(layout_, pre_BnX, h));
    } else if (h.from_rank == rank()) {
      group.send(h.to_rank, halo_rows(layout_, pre_BnX, h));
    } else if (h.to_rank == rank()) {
      group.receive(h.from_rank, halo_of(h.to_segment));
    }
  }
  if (sp_.size() == 1) return {};
  return std::move(group).start();
}

Pending SequenceExchange::conv_halo_backward(Arena& scratch, Tensor dpre_BnX, ConstTensor dhalo_sBWX) {
  const TraceRange trace("conv_halo_backward");
  TM_CHECK(dpre_BnX.dims() == 3, "conv_halo_backward: gradients of rows are [B, n, X], got ", dpre_BnX.shape());
  const int64_t width = layout_.spec().conv_width - 1;
  check_sizes("conv_halo_backward", "the local rows", dpre_BnX, {dpre_BnX.size(0), local_tokens(), dpre_BnX.size(2)});
  check_sizes("conv_halo_backward", "the halo", dhalo_sBWX,
              {std::ssize(segments()), dpre_BnX.size(0), width, dpre_BnX.size(2)});
  const Staging staging(scratch, ops_);
  MessageGroup group(staging, sp_);
  std::vector<std::pair<Tensor, ConstTensor>> sums;  // in sequence order, so that the order of additions is fixed
  for (const Halo& h : layout_.halos()) {
    if (h.rows.empty()) continue;
    const bool is_local = h.to_rank == rank();
    const ConstTensor dhalo =
        is_local ? dhalo_sBWX.select(0, local_index(layout_.segment(h.to_segment))) : ConstTensor();
    if (h.from_rank != rank()) {
      if (is_local) group.send(h.from_rank, dhalo);
      continue;
    }
    const Tensor rows = halo_rows(layout_, dpre_BnX, h);
    sums.emplace_back(rows, is_local ? dhalo : group.receive_beside(h.to_rank, rows));
  }
  const auto add = [staging, sums = std::move(sums)] {
    for (const auto& [rows, dhalo] : sums) staging.add(rows, dhalo);
  };
  if (sp_.size() > 1) return std::move(group).start(add);
  add();
  return {};
}

}  // namespace tmamba
