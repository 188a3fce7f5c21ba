// Kernels for Hopper GPUs (wgmma.cuh) beside those for every GPU: which of them run.
#pragma once

namespace tmamba::cuda {

// Whether the current GPU runs the kernels for Hopper and they are allowed.
bool runs_wgmma();

// Forbids them, or allows them again (they are at the start): for tests and measurements of the others.
void allow_wgmma(bool allowed);

}  // namespace tmamba::cuda
