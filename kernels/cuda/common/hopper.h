// The choice between the Hopper kernels (wgmma.cuh) and the portable ones.
#pragma once

namespace tmamba::cuda {

// Whether the current GPU supports the Hopper kernels (sm_90) and they are allowed.
bool runs_wgmma();

// Allows (the default) or forbids the Hopper kernels: for tests and benchmarks of the portable ones.
void allow_wgmma(bool allowed);

}  // namespace tmamba::cuda
