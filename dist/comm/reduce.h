// Reductions of host memory in a fixed order.
#pragma once

#include <span>

#include "dist/comm/communicator.h"

namespace tmamba {

// out[i] = ((inputs[0][i] op inputs[1][i]) op inputs[2][i]) ... for i < count. `out` may be one of the inputs. bfloat16
// is combined in float32 and rounded once, to nearest even.
void reduce_in_order(ReduceOp op, DType dtype, void* out, std::span<const void* const> inputs, int64_t count);

}  // namespace tmamba
