// The convolution with RoPE in passes of its own: what a backend runs where it has no kernel for both.
#pragma once

#include "kernels/ops/ops.h"

namespace tmamba {

// By conv_silu_forward, rope_forward and their backward passes.
void conv_rope_in_passes(Ops& ops, const ConvRopeForward& args);
void conv_rope_in_passes(Ops& ops, const ConvRopeBackward& args);

}  // namespace tmamba
