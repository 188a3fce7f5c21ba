#include "launch/plan/machine_rates.h"

#include <algorithm>

#include "launch/plan/model_costs.h"

namespace tmamba {

namespace {

struct KindTiming {
  OpTiming forward, backward;
};

void set_rate(double& compute, double& streaming, const OpTiming& timing, const MachineModel& machine) {
  if (timing.seconds == 0) return;
  const double of_flops = timing.flops / timing.seconds / machine.peak_flops;
  const double of_bytes = timing.bytes / timing.seconds / machine.memory_bandwidth;
  compute = of_flops >= of_bytes ? of_flops : std::max(of_flops, compute);
  streaming = of_bytes > of_flops ? of_bytes : std::max(of_bytes, streaming);
}

}  // namespace

MachineModel measured_machine(MachineModel prior, double peak_flops, double memory_bandwidth,
                              const std::map<std::string, OpTiming>& timings) {
  ByKind<KindTiming> kinds;
  for (const auto& [op, timing] : timings) {
    const auto kind = kind_of(op);
    if (!kind) continue;
    OpTiming& sum = op.find("_backward") == std::string::npos ? kinds[*kind].forward : kinds[*kind].backward;
    sum.seconds += timing.seconds, sum.flops += timing.flops, sum.bytes += timing.bytes;
  }
  // Their ops have the same names.
  kinds[WorkKind::head] = kinds[WorkKind::linear], kinds[WorkKind::converter] = kinds[WorkKind::ssd];
  prior.peak_flops = peak_flops, prior.memory_bandwidth = memory_bandwidth;
  for (const auto& [forward, backward] : kinds) {
    for (const OpTiming& sum : {forward, backward}) {
      if (sum.seconds == 0) continue;
      prior.peak_flops = std::max(prior.peak_flops, sum.flops / sum.seconds);
      prior.memory_bandwidth = std::max(prior.memory_bandwidth, sum.bytes / sum.seconds);
    }
  }
  for (WorkKind kind : kWorkKinds) {
    Rate &compute = prior.compute[kind], &streaming = prior.streaming[kind];
    set_rate(compute.forward, streaming.forward, kinds[kind].forward, prior);
    set_rate(compute.backward, streaming.backward, kinds[kind].backward, prior);
  }
  return prior;
}

}  // namespace tmamba
