// The kernels of the depthwise convolution with SiLU and, if there is a prefix, RoPE (ops.h).
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/common/workspace.h"
#include "kernels/ops/ops.h"

namespace tmamba::cuda {

void conv_forward(cudaStream_t stream, const ConvRopeForward& args);
// dy_BTC replaces args.dy_BTC. It and the rotated keys' gradient are not modified.
void conv_backward(cudaStream_t stream, Workspace& workspace, const ConvRopeBackward& args, const ConstTensor& dy_BTC);

}  // namespace tmamba::cuda
