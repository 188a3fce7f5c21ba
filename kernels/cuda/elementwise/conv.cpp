#include "kernels/cuda/elementwise/conv.h"

#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops/conv_rope.h"

namespace tmamba::cuda {

namespace {

// Whether the kernels can apply RoPE to heads of this width: a block takes whole heads, in 16-byte vectors of each
// half.
template <class Args>
bool one_pass(const Args& args) {
  if (args.prefix == 0) return true;
  const int64_t dim = args.x_BTC.size(2) / (3 * args.heads);
  return dim % 32 == 0 && dim <= 256;
}

}  // namespace

void CudaOps::conv_silu_forward(const ConvSiluForward& args) {
  conv_forward(
      stream(),
      {.y_BTC = args.y_BTC, .x_BTC = args.x_BTC, .halo_BWC = args.halo_BWC, .w_CW = args.w_CW, .b_C = args.b_C});
}

void CudaOps::conv_silu_backward(const ConvSiluBackward& args) {
  if (!args.dhalo_BWC.empty() && args.x_BTC.size(1) == 0) fill({args.dhalo_BWC, 0});
  conv_backward(stream(), workspace_,
                {.dx_BTC = args.dx_BTC,
                 .dhalo_BWC = args.dhalo_BWC,
                 .dw_CW = args.dw_CW,
                 .db_C = args.db_C,
                 .dy_BTC = {},
                 .x_BTC = args.x_BTC,
                 .halo_BWC = args.halo_BWC,
                 .w_CW = args.w_CW,
                 .b_C = args.b_C},
                args.dy_BTC);
}

void CudaOps::conv_silu_rope_forward(const ConvRopeForward& args) {
  if (!one_pass(args)) return conv_rope_in_passes(*this, args);
  args.check_rest();
  conv_forward(stream(), args);
}

void CudaOps::conv_silu_rope_backward(const ConvRopeBackward& args) {
  if (!one_pass(args)) return conv_rope_in_passes(*this, args);
  args.check_rest();
  if (!args.dhalo_BWC.empty() && args.x_BTC.size(1) == 0) fill({args.dhalo_BWC, 0});
  conv_backward(stream(), workspace_, args, args.dy_BTC);
}

}  // namespace tmamba::cuda
