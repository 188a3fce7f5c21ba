#include "kernels/ops/ssd_empty.h"

namespace tmamba {

namespace {

// to = from, or zero without it. Either may be absent, or both the same memory.
void pass(Ops& ops, const Tensor& to, const ConstTensor& from) {
  if (to.empty() || to.raw() == from.raw()) return;
  if (from.empty()) return ops.fill({to, 0});
  ops.copy({to, from});
}

}  // namespace

void ssd_of_no_tokens(Ops& ops, const SsdForward& args) {
  if (!args.log_decay_BH.empty()) ops.fill({args.log_decay_BH, 0});
  pass(ops, args.final_state_BHKD, args.initial_state_BHKD);
}

void ssd_of_no_tokens(Ops& ops, const SsdBackward& args) {
  pass(ops, args.dinitial_state_BHKD, args.dfinal_state_BHKD);
}

}  // namespace tmamba
