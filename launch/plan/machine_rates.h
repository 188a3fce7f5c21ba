// Rates of this machine for the planner, from the times of the ops of a training step (`bench ops`).
#pragma once

#include <map>
#include <string>

#include "dist/planner/cost.h"
#include "kernels/ops/timed_ops.h"

namespace tmamba {

// `prior` with measured rates: the peaks, in FLOP/s of a GEMM and bytes/s of a copy, and of each kind of work the
// fractions that its ops reach of them, forward and backward; a kind that is faster than a peak raises it. The peak of
// which an op reaches more bounds it; where the times say nothing about the other one, the prior's fraction stays, as
// do the rates of work that was not timed, the links and the memory.
MachineModel measured_machine(MachineModel prior, double peak_flops, double memory_bandwidth,
                              const std::map<std::string, OpTiming>& timings);

}  // namespace tmamba
