// The peak that an MFU is relative to: that of the devices which run, never of another kind.
#pragma once

#include <string>

#include "dist/world/world.h"
#include "launch/config/config.h"

namespace tmamba {

struct Peak {
  double flops = 0;    // per second of one rank, dense (without sparsity); 0: unknown
  std::string source;  // where the number is from; if it is unknown, what to set
};

// The peak of an NVIDIA data-centre GPU of this name (cudaDeviceProp::name) for GEMMs of this type.
Peak peak_of_device(const std::string& name, DType dtype);

// The mean over the ranks: run.peak_tflops, or that of each rank's GPU. Unknown if that of one rank is, and on CPUs.
// Collective; the same on all ranks.
Peak peak_of_ranks(const RunConfig& config, World& world);

// 3 x forward FLOPs of the model, without recomputation, of all sequences of a step, over what the ranks could do in
// that time. The peak must be known.
double mfu(double forward_flops, double seconds, int64_t ranks, const Peak& peak);

}  // namespace tmamba
