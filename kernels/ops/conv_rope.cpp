#include "kernels/ops/conv_rope.h"

namespace tmamba {

namespace {

// q or k (0, 1) of the prefix, [B, P, H, D].
template <class Args>
Tensor part(const Args& args, const Tensor& x_BTC, int64_t which) {
  const int64_t width = x_BTC.size(2) / 3;
  return x_BTC.slice(1, 0, args.prefix).slice(2, which * width, width).split(2, args.heads, width / args.heads);
}

template <class Args>
void check(const Args& args, const Tensor& k_rot_BPHD) {
  const ConstTensor& x = args.x_BTC;
  const int64_t H = args.heads, P = args.prefix;
  TM_CHECK(x.dims() == 3 && H >= 1 && x.size(2) % (3 * H) == 0, "conv_silu_rope x_BTC ", x.shape(),
           " is not q, k and v of ", H, " heads");
  const int64_t D = x.size(2) / (3 * H);
  TM_CHECK(P >= 0 && P <= x.size(1) && args.position >= 0, "conv_silu_rope: a prefix of ", P, " of ", x.size(1),
           " tokens from position ", args.position);
  TM_CHECK(P == 0 || D % 2 == 0, "conv_silu_rope needs an even head width, got ", D);
  if (k_rot_BPHD.empty()) return;
  const Tensor& k = k_rot_BPHD;
  TM_CHECK(k.dims() == 4 && k.size(0) == x.size(0) && k.size(1) == P && k.size(2) == H && k.size(3) == D &&
               k.dtype() == x.dtype() && k.device() == x.device() && k.stride(3) == 1,
           "conv_silu_rope: the rotated keys are ", k.shape(), " ", name_of(k.dtype()), ", expected [", x.size(0), ", ",
           P, ", ", H, ", ", D, "] ", name_of(x.dtype()), ", last dimension contiguous, beside x");
}

}  // namespace

void check_conv_rope(const ConvRopeForward& args) { check(args, args.k_rot_BPHD); }
void check_conv_rope(const ConvRopeBackward& args) { check(args, args.dk_rot_BPHD); }

void conv_rope_in_passes(Ops& ops, const ConvRopeForward& args) {
  check_conv_rope(args);
  ops.conv_silu_forward(args.y_BTC, args.x_BTC, args.halo_BWC, args.w_CW, args.b_C);
  if (args.prefix == 0) return;
  const Tensor q = part(args, args.y_BTC, 0), k = part(args, args.y_BTC, 1);
  ops.rope_forward(q, q, args.position, args.theta);
  ops.rope_forward(args.k_rot_BPHD.empty() ? k : args.k_rot_BPHD, k, args.position, args.theta);
}

void conv_rope_in_passes(Ops& ops, const ConvRopeBackward& args) {
  check_conv_rope(args);
  if (args.prefix > 0) {
    const Tensor dq = part(args, args.dy_BTC, 0), dk = part(args, args.dy_BTC, 1);
    const Tensor dk_rot = args.dk_rot_BPHD.empty() ? dk : args.dk_rot_BPHD;
    ops.rope_backward(dq, dq, args.position, args.theta);
    ops.rope_backward(dk_rot, dk_rot, args.position, args.theta);
    if (!args.dk_rot_BPHD.empty()) ops.add(dk, dk_rot);
  }
  ops.conv_silu_backward(args.dx_BTC, args.dhalo_BWC, args.dw_CW, args.db_C, args.dy_BTC, args.x_BTC, args.halo_BWC,
                         args.w_CW, args.b_C);
}

}  // namespace tmamba
