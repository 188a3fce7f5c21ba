#include "dist/comm/absent_communicator.h"

#include "dist/comm/collective_args.h"

namespace tmamba {

namespace {
[[noreturn]] void refuse(const Communicator& comm, Collective op) {
  throw Error(str(CallSite{comm, op}.text(), ": a dry run has no other ranks and must not call collectives"));
}
}  // namespace

AbsentCommunicator::AbsentCommunicator(std::string name, int rank, int size)
    : name_(std::move(name)), rank_(rank), size_(size) {
  TM_CHECK(rank >= 0 && rank < size, "rank ", rank, " is not in [0, ", size, ") of \"", name_, "\"");
}

Work AbsentCommunicator::all_reduce(Tensor, ReduceOp) { refuse(*this, Collective::all_reduce); }
Work AbsentCommunicator::reduce_scatter(Tensor, ConstTensor, std::span<const int64_t>) {
  refuse(*this, Collective::reduce_scatter);
}
Work AbsentCommunicator::all_gather(Tensor, ConstTensor, std::span<const int64_t>) {
  refuse(*this, Collective::all_gather);
}
Work AbsentCommunicator::broadcast(Tensor, int) { refuse(*this, Collective::broadcast); }
Work AbsentCommunicator::all_to_all(Tensor, std::span<const int64_t>, ConstTensor, std::span<const int64_t>) {
  refuse(*this, Collective::all_to_all);
}
Work AbsentCommunicator::send_recv(std::span<const Message>) { refuse(*this, Collective::send_recv); }
void AbsentCommunicator::barrier() { refuse(*this, Collective::barrier); }
std::unique_ptr<Communicator> AbsentCommunicator::split(int, int, const std::string&) {
  refuse(*this, Collective::barrier);
}

}  // namespace tmamba
