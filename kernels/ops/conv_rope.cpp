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
  TM_CHECK(x.dims() == 3 && H >= 1 && x.size(2) % (3 * H) == 0, Args::kName, " x_BTC ", x.shape(),
           " is not q, k and v of ", H, " heads");
  const int64_t D = rope_head_width(x.size(2), H);
  TM_CHECK(P >= 0 && P <= x.size(1) && args.position >= 0, Args::kName, ": a prefix of ", P, " of ", x.size(1),
           " tokens from position ", args.position);
  TM_CHECK(P == 0 || D % 2 == 0, Args::kName, " needs an even head width, got ", D);
  if (!k_rot_BPHD.empty()) {
    check_tensor(x.device(), Args::kName, k_rot_BPHD, {"k_rot_BPHD", x.dtype(), {x.size(0), P, H, D}});
  }
}

// Elements of q and k that are rotated: two thirds of the channels of the prefix.
template <class Args>
double rotated(const Args& args) {
  return static_cast<double>(args.x_BTC.size(0) * args.prefix * (args.x_BTC.size(2) / 3 * 2));
}

template <class Args>
OpCounts counts(const Args& args) {
  OpCounts out = args.conv().counts();
  out.elementwise += 3 * rotated(args);
  return out;
}

}  // namespace

void ConvRopeForward::check_rest() const { check(*this, k_rot_BPHD); }
void ConvRopeBackward::check_rest() const { check(*this, dk_rot_BPHD); }
OpCounts ConvRopeForward::counts() const { return tmamba::counts(*this); }
OpCounts ConvRopeBackward::counts() const { return tmamba::counts(*this); }

void conv_rope_in_passes(Ops& ops, const ConvRopeForward& args) {
  args.check_rest();
  ops.conv_silu_forward(args.conv());
  if (args.prefix == 0) return;
  const Tensor q = part(args, args.y_BTC, 0), k = part(args, args.y_BTC, 1);
  ops.rope_forward({.y_BTHD = q, .x_BTHD = q, .position = args.position, .theta = args.theta});
  ops.rope_forward({.y_BTHD = args.k_rot_BPHD.empty() ? k : args.k_rot_BPHD,
                    .x_BTHD = k,
                    .position = args.position,
                    .theta = args.theta});
}

void conv_rope_in_passes(Ops& ops, const ConvRopeBackward& args) {
  args.check_rest();
  if (args.prefix > 0) {
    const Tensor dq = part(args, args.dy_BTC, 0), dk = part(args, args.dy_BTC, 1);
    const Tensor dk_rot = args.dk_rot_BPHD.empty() ? dk : args.dk_rot_BPHD;
    ops.rope_backward({.dx_BTHD = dq, .dy_BTHD = dq, .position = args.position, .theta = args.theta});
    ops.rope_backward({.dx_BTHD = dk_rot, .dy_BTHD = dk_rot, .position = args.position, .theta = args.theta});
    if (!args.dk_rot_BPHD.empty()) ops.add({dk, dk_rot});
  }
  ops.conv_silu_backward(args.conv());
}

}  // namespace tmamba
