#include <utility>

#include "dist/sequence/exchange.h"

namespace tmamba {

namespace {
// Whether x is a view of a measuring arena, which has sizes but no memory.
bool measured(const ConstTensor& x) { return x.empty() && x.numel() > 0; }
}  // namespace

TensorExchange::TensorExchange(Communicator& tp, int64_t rows, ExchangeOps ops)
    : tp_(tp), total_(rows), ops_(std::move(ops)) {}

std::vector<int64_t> TensorExchange::counts(const char* verb, const ConstTensor& all_NC,
                                            const ConstTensor& mine_nC) const {
  if (all_NC.dims() < 1 || all_NC.size(0) != total_ || (total_ > 0 && all_NC.numel() % total_ != 0)) {
    throw Error(str(verb, " on \"", tp_.name(), "\", rank ", rank(), " of ", size(), ": the tensor of all rows is ",
                    all_NC.shape(), ", expected ", total_, " rows"));
  }
  const int64_t width = total_ > 0 ? all_NC.numel() / total_ : 0;
  std::vector<int64_t> counts;
  for (int r = 0; r < size(); ++r) counts.push_back(shard_of(total_, r, size()).count * width);
  if (mine_nC.numel() != counts[static_cast<size_t>(rank())]) {
    throw Error(str(verb, " on \"", tp_.name(), "\", rank ", rank(), " of ", size(), ": this rank's rows are ",
                    mine_nC.shape(), ", expected ", rows().size(), " rows of ", all_NC.shape()));
  }
  return counts;
}

void TensorExchange::gather_rows(Tensor all_NC, ConstTensor mine_nC) {
  const std::vector<int64_t> elements = counts("gather_rows", all_NC, mine_nC);
  if (measured(all_NC)) return;
  if (size() > 1) {
    tp_.all_gather(all_NC, mine_nC, elements).wait();
  } else if (all_NC.raw() != mine_nC.raw()) {
    ops_.copy(all_NC, mine_nC);
  }
}

void TensorExchange::scatter_sum(Tensor mine_nC, ConstTensor partial_NC) {
  const std::vector<int64_t> elements = counts("scatter_sum", partial_NC, mine_nC);
  if (measured(partial_NC)) return;
  if (size() > 1) {
    tp_.reduce_scatter(mine_nC, partial_NC, elements).wait();
  } else if (mine_nC.raw() != partial_NC.raw()) {
    ops_.copy(mine_nC, partial_NC);
  }
}

void TensorExchange::all_sum(Tensor x) {
  if (size() > 1 && !measured(x)) tp_.all_reduce(x, ReduceOp::sum).wait();
}

void TensorExchange::all_max(Tensor x) {
  if (size() > 1 && !measured(x)) tp_.all_reduce(x, ReduceOp::max).wait();
}

}  // namespace tmamba
