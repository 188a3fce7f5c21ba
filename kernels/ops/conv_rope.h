// The convolution with RoPE in passes of its own: what a backend runs where it has no kernel for both.
#pragma once

#include "kernels/ops/ops.h"

namespace tmamba {

// Throws Error unless the sizes fit each other; the convolution checks the rest.
void check_conv_rope(const ConvRopeForward& args);
void check_conv_rope(const ConvRopeBackward& args);

// By conv_silu_forward, rope_forward and their backward passes.
void conv_rope_in_passes(Ops& ops, const ConvRopeForward& args);
void conv_rope_in_passes(Ops& ops, const ConvRopeBackward& args);

}  // namespace tmamba
