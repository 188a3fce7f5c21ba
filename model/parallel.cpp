#include "model/parallel.h"

#include <algorithm>
#include <utility>

namespace tmamba {

ExchangeOps exchange_ops(Ops& ops) {
  return {.copy =
              [&ops](Tensor y, ConstTensor x) {
                ops.copy({y, x});
              },
          .add =
              [&ops](Tensor y, ConstTensor x) {
                ops.add({y, x});
              },
          .zero =
              [&ops](Tensor x) {
                ops.fill({x, 0});
              },
          .scan =
              [&ops](Tensor out, ConstTensor in, ConstTensor decay, bool reverse) {
                ops.segment_scan({.out_KBHE = out, .in_KBHE = in, .decay_KBH = decay, .reverse = reverse});
              }};
}

namespace {

LayoutSpec unsplit(LayoutSpec spec) {
  spec.ranks = spec.fold = spec.grain = 1;
  return spec;
}

}  // namespace

ModelRanks::ModelRanks(const LayoutSpec& layout, int64_t batch, Ops& ops, Communicator& sp, Communicator& tp,
                       std::vector<Transport> transports)
    : layout_(layout),
      whole_layout_(unsplit(layout)),
      sequence_(layout_, sp, exchange_ops(ops)),
      whole_(whole_layout_, alone_, exchange_ops(ops)),
      transports_(std::move(transports)),
      batch_(batch),
      tensor_(tp, batch * sequence_.local_tokens(), exchange_ops(ops)) {
  TM_CHECK(transports_.size() == 1 || std::ssize(transports_) == layout_.layers(), "ModelRanks: ", transports_.size(),
           " transports for ", layout_.layers(), " layers");
}

Transport ModelRanks::transport(int layer) const {
  if (layout_.ranks() == 1) return {};
  return transports_.size() == 1 ? transports_.front() : transports_.at(static_cast<size_t>(layer));
}

void ModelRanks::shard(const Tensor& local_Bn, const ConstTensor& whole_BT) const {
  TM_CHECK(whole_BT.size(1) == layout_.tokens() && local_Bn.size(1) == local_tokens(),
           "ModelRanks::shard: sequences of ", whole_BT.size(1), " tokens for a layout of ", layout_.tokens());
  for (int64_t b = 0; b < whole_BT.size(0); ++b) {
    const int32_t* whole = whole_BT.select(0, b).data<int32_t>();
    int32_t* local = local_Bn.select(0, b).data<int32_t>();
    for (const Segment& s : sequence_.segments()) std::copy_n(whole + s.begin, s.size(), local + s.local_begin);
  }
}

}  // namespace tmamba
