#include "kernels/cuda/elementwise/conv.h"

#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops/conv_rope.h"

namespace tmamba::cuda {

namespace {

// Whether the kernels rotate heads this wide themselves: a block takes whole heads, in pieces of 16 bytes of each half.
template <class Args>
bool one_pass(const Args& args) {
  if (args.prefix == 0) return true;
  const int64_t dim = args.x_BTC.size(2) / (3 * args.heads);
  return dim % 32 == 0 && dim <= 256;
}

}  // namespace

void CudaOps::conv_silu_forward(Tensor y_BTC, ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW,
                                ConstTensor b_C) {
  ConvRopeForward args;
  args.y_BTC = y_BTC, args.x_BTC = x_BTC, args.halo_BWC = halo_BWC, args.w_CW = w_CW, args.b_C = b_C;
  conv_forward(stream(), args);
}

void CudaOps::conv_silu_backward(Tensor dx_BTC, Tensor dhalo_BWC, Tensor dw_CW, Tensor db_C, ConstTensor dy_BTC,
                                 ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW, ConstTensor b_C) {
  if (!dhalo_BWC.empty() && x_BTC.size(1) == 0) fill(dhalo_BWC, 0);
  ConvRopeBackward args;
  args.dx_BTC = dx_BTC, args.dhalo_BWC = dhalo_BWC, args.dw_CW = dw_CW, args.db_C = db_C;
  args.x_BTC = x_BTC, args.halo_BWC = halo_BWC, args.w_CW = w_CW, args.b_C = b_C;
  conv_backward(stream(), workspace_, args, dy_BTC);
}

void CudaOps::conv_silu_rope_forward(const ConvRopeForward& args) {
  if (!one_pass(args)) return conv_rope_in_passes(*this, args);
  check_conv_rope(args);
  conv_forward(stream(), args);
}

void CudaOps::conv_silu_rope_backward(const ConvRopeBackward& args) {
  if (!one_pass(args)) return conv_rope_in_passes(*this, args);
  check_conv_rope(args);
  if (!args.dhalo_BWC.empty() && args.x_BTC.size(1) == 0) fill(args.dhalo_BWC, 0);
  conv_backward(stream(), workspace_, args, args.dy_BTC);
}

}  // namespace tmamba::cuda
