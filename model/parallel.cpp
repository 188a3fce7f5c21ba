#include "model/parallel.h"

#include <algorithm>

namespace tmamba {

ExchangeOps exchange_ops(Ops& ops) {
  return {.copy = [&ops](Tensor y, ConstTensor x) { ops.copy(y, x); },
          .add = [&ops](Tensor y, ConstTensor x) { ops.add(y, x); },
          .zero = [&ops](Tensor x) { ops.fill(x, 0); },
          .scan = [&ops](Tensor out, ConstTensor in, ConstTensor decay,
                         bool reverse) { ops.segment_scan(out, in, decay, reverse); }};
}

void ModelRanks::shard(const Tensor& local_Bn, const ConstTensor& whole_BT) const {
  TM_CHECK(whole_BT.size(1) == layout_.tokens() && local_Bn.size(1) == local_tokens(), "sequences of ",
           whole_BT.size(1), " tokens for a layout of ", layout_.tokens());
  for (int64_t b = 0; b < whole_BT.size(0); ++b) {
    const int32_t* whole = whole_BT.select(0, b).data<int32_t>();
    int32_t* local = local_Bn.select(0, b).data<int32_t>();
    for (const Segment& s : sequence_.segments()) std::copy_n(whole + s.begin, s.size(), local + s.local_begin);
  }
}

}  // namespace tmamba
