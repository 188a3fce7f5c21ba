// The SSM scan over no tokens, for all backends.
#pragma once

#include "kernels/ops/ops.h"

namespace tmamba {

// The state, or its gradient, passes as it is.
void ssd_of_no_tokens(Ops& ops, const SsdForward& args);
void ssd_of_no_tokens(Ops& ops, const SsdBackward& args);

}  // namespace tmamba
