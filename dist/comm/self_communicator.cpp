#include "dist/comm/self_communicator.h"

#include "dist/comm/collective_args.h"
#include "dist/comm/self_messages.h"
#include "kernels/base/buffer.h"

namespace tmamba {

void SelfCommunicator::copy(Collective op, const Tensor& to, const ConstTensor& from) const {
  if (to.numel() == 0 || to.raw() == from.raw()) return;
  const CallSite site{*this, op};
  check_tensor(site, "output", to, from.device());
  check_tensor(site, "input", from, from.device());
  copy_blocking(flat_slice(to, 0, to.numel()), from);
}

Work SelfCommunicator::all_reduce(Tensor x, ReduceOp) {
  check_tensor({*this, Collective::all_reduce}, "tensor", x, x.device());
  count(Collective::all_reduce);
  return {};
}

Work SelfCommunicator::reduce_scatter(Tensor out, ConstTensor in, std::span<const int64_t> counts) {
  const CallSite site{*this, Collective::reduce_scatter};
  check_counts(site, "the input", in, counts);
  check_shard(site, in, out, counts);
  copy(site.op, out, in);
  count(site.op);
  return {};
}

Work SelfCommunicator::all_gather(Tensor out, ConstTensor in, std::span<const int64_t> counts) {
  const CallSite site{*this, Collective::all_gather};
  check_counts(site, "the output", out, counts);
  check_shard(site, out, in, counts);
  copy(site.op, out, in);
  count(site.op);
  return {};
}

Work SelfCommunicator::broadcast(Tensor x, int root) {
  const CallSite site{*this, Collective::broadcast};
  check_peer(site, "the root", root);
  check_tensor(site, "tensor", x, x.device());
  count(site.op);
  return {};
}

Work SelfCommunicator::all_to_all(Tensor out, std::span<const int64_t> out_counts, ConstTensor in,
                                  std::span<const int64_t> in_counts) {
  const CallSite site{*this, Collective::all_to_all};
  check_counts(site, "the output", out, out_counts);
  check_counts(site, "the input", in, in_counts);
  check_shard(site, out, in, out_counts);
  copy(site.op, out, in);
  count(site.op);
  return {};
}

Work SelfCommunicator::send_recv(std::span<const Message> messages) {
  const CallSite site{*this, Collective::send_recv};
  for (const Message& message : messages) check_peer(site, "the peer", message.peer);
  for (const SelfMessage& message : match_self_messages(site, messages)) copy(site.op, message.to, message.from);
  count(site.op);
  return {};
}

void SelfCommunicator::barrier() { count(Collective::barrier); }

std::unique_ptr<Communicator> SelfCommunicator::split(int color, int, const std::string& name) {
  if (color < 0) throw Error(str("split of \"", name_, "\": negative color ", color));
  return std::make_unique<SelfCommunicator>(name);
}

}  // namespace tmamba
