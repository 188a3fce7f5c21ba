// Depthwise causal convolution, RoPE, and both in one pass.
#pragma once

#include "kernels/ops/op_args.h"

namespace tmamba {

// y_t = SiLU(b + sum_j w[., j] x_{t - (W-1) + j}); the W-1 rows before x_0 are the halo.
struct ConvSiluForward {
  static constexpr const char* kName = "conv_silu_forward";
  static constexpr Split kSplit = Split::sequences;
  Tensor y_BTC;
  ConstTensor x_BTC;
  ConstTensor halo_BWC = {};  // [B, W-1, C]; absent: zeros
  ConstTensor w_CW;
  ConstTensor b_C;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.x_BTC.size(0), T = a.x_BTC.size(1), C = a.x_BTC.size(2), W = a.w_CW.size(1);
    const DType A = a.x_BTC.dtype();
    f(a.y_BTC, {"y_BTC", A, {B, T, C}});
    f(a.x_BTC, {"x_BTC", A, {B, T, C}});
    f(a.halo_BWC, {"halo_BWC", A, {B, W - 1, C}, kOptional});
    f(a.w_CW, {"w_CW", A, {C, W}});
    f(a.b_C, {"b_C", A, {C}});
  }
  void check_rest() const { TM_CHECK(w_CW.size(1) >= 1, "conv w_CW ", w_CW.shape(), " has no taps"); }
  OpCounts counts() const { return {.elementwise = elements(y_BTC) * static_cast<double>(2 * w_CW.size(1) + 4)}; }
};

// Computes the pre-activation again.
struct ConvSiluBackward {
  static constexpr const char* kName = "conv_silu_backward";
  static constexpr Split kSplit = Split::sequences;
  Tensor dx_BTC;
  Tensor dhalo_BWC = {};
  Tensor dw_CW;  // [acc] added
  Tensor db_C;   // [acc] added
  ConstTensor dy_BTC;
  ConstTensor x_BTC;
  ConstTensor halo_BWC = {};
  ConstTensor w_CW;
  ConstTensor b_C;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.x_BTC.size(0), T = a.x_BTC.size(1), C = a.x_BTC.size(2), W = a.w_CW.size(1);
    const DType A = a.x_BTC.dtype(), acc = accumulate_type(A);
    f(a.dx_BTC, {"dx_BTC", A, {B, T, C}});
    f(a.dhalo_BWC, {"dhalo_BWC", A, {B, W - 1, C}, kOptional});
    f(a.dw_CW, {"dw_CW", acc, {C, W}, kTokenSum});
    f(a.db_C, {"db_C", acc, {C}, kTokenSum});
    f(a.dy_BTC, {"dy_BTC", A, {B, T, C}});
    f(a.x_BTC, {"x_BTC", A, {B, T, C}});
    f(a.halo_BWC, {"halo_BWC", A, {B, W - 1, C}, kOptional});
    f(a.w_CW, {"w_CW", A, {C, W}});
    f(a.b_C, {"b_C", A, {C}});
  }
  void check_rest() const { TM_CHECK(w_CW.size(1) >= 1, "conv w_CW ", w_CW.shape(), " has no taps"); }
  OpCounts counts() const { return {.elementwise = elements(dx_BTC) * static_cast<double>(6 * w_CW.size(1) + 8)}; }
};

// The width of a head of q, k or v.
constexpr int64_t rope_head_width(int64_t C, int64_t heads) { return heads > 0 ? C / (3 * heads) : 0; }

// The convolution of a mixer's q, k and v, C = 3 H D channels in this order, and RoPE on q and k of the first `prefix`
// of the T tokens (model/SPEC.md section 2), in one pass. Token t has position `position + t`.
//   y = conv_silu_forward(x), but of tokens t < prefix q is rotated, and so is k where k_rot_BPHD is absent; else
//   k_rot_BPHD is k rotated, and y has it plain (for the Memory Converter).
struct ConvRopeForward {
  static constexpr const char* kName = "conv_silu_rope_forward";
  static constexpr Split kSplit = Split::sequences;
  Tensor y_BTC;
  Tensor k_rot_BPHD = {};  // P = prefix
  ConstTensor x_BTC;
  ConstTensor halo_BWC = {};  // as in ConvSiluForward
  ConstTensor w_CW;
  ConstTensor b_C;
  int64_t heads = 1, prefix = 0, position = 0;
  double theta = 10000;

  // Its convolution alone.
  ConvSiluForward conv() const {
    return {.y_BTC = y_BTC, .x_BTC = x_BTC, .halo_BWC = halo_BWC, .w_CW = w_CW, .b_C = b_C};
  }
  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.x_BTC.size(0), T = a.x_BTC.size(1), C = a.x_BTC.size(2), W = a.w_CW.size(1);
    const DType A = a.x_BTC.dtype();
    f(a.y_BTC, {"y_BTC", A, {B, T, C}});
    f(a.k_rot_BPHD, {"k_rot_BPHD", A, {B, a.prefix, a.heads, rope_head_width(C, a.heads)}, kOptional});
    f(a.x_BTC, {"x_BTC", A, {B, T, C}});
    f(a.halo_BWC, {"halo_BWC", A, {B, W - 1, C}, kOptional});
    f(a.w_CW, {"w_CW", A, {C, W}});
    f(a.b_C, {"b_C", A, {C}});
  }
  void check_rest() const;
  OpCounts counts() const;
};

// The gradients of y and k_rot are used up: what they hold afterwards is undefined.
struct ConvRopeBackward {
  static constexpr const char* kName = "conv_silu_rope_backward";
  static constexpr Split kSplit = Split::sequences;
  Tensor dx_BTC;
  Tensor dhalo_BWC = {};
  Tensor dw_CW;  // [acc] added
  Tensor db_C;   // [acc] added
  Tensor dy_BTC;
  Tensor dk_rot_BPHD = {};  // absent where k_rot is
  ConstTensor x_BTC;
  ConstTensor halo_BWC = {};
  ConstTensor w_CW;
  ConstTensor b_C;
  int64_t heads = 1, prefix = 0, position = 0;
  double theta = 10000;

  // Its convolution alone.
  ConvSiluBackward conv() const {
    return {.dx_BTC = dx_BTC,
            .dhalo_BWC = dhalo_BWC,
            .dw_CW = dw_CW,
            .db_C = db_C,
            .dy_BTC = dy_BTC,
            .x_BTC = x_BTC,
            .halo_BWC = halo_BWC,
            .w_CW = w_CW,
            .b_C = b_C};
  }
  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.x_BTC.size(0), T = a.x_BTC.size(1), C = a.x_BTC.size(2), W = a.w_CW.size(1);
    const DType A = a.x_BTC.dtype(), acc = accumulate_type(A);
    f(a.dx_BTC, {"dx_BTC", A, {B, T, C}});
    f(a.dhalo_BWC, {"dhalo_BWC", A, {B, W - 1, C}, kOptional});
    f(a.dw_CW, {"dw_CW", acc, {C, W}, kTokenSum});
    f(a.db_C, {"db_C", acc, {C}, kTokenSum});
    f(a.dy_BTC, {"dy_BTC", A, {B, T, C}});
    f(a.dk_rot_BPHD, {"dk_rot_BPHD", A, {B, a.prefix, a.heads, rope_head_width(C, a.heads)}, kOptional});
    f(a.x_BTC, {"x_BTC", A, {B, T, C}});
    f(a.halo_BWC, {"halo_BWC", A, {B, W - 1, C}, kOptional});
    f(a.w_CW, {"w_CW", A, {C, W}});
    f(a.b_C, {"b_C", A, {C}});
  }
  void check_rest() const;
  OpCounts counts() const;
};

// Rotary position embedding of pairs (i, i + D/2) by the angle position * theta^(-2i/D). Token t of the T given has
// position `position + t`.
struct RopeForward {
  static constexpr const char* kName = "rope_forward";
  static constexpr Split kSplit = Split::sequences;
  Tensor y_BTHD;  // may be the same memory as x
  ConstTensor x_BTHD;
  int64_t position;
  double theta;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    f(a.y_BTHD, {"y_BTHD", a.x_BTHD.dtype(), a.x_BTHD});
    f(a.x_BTHD, {"x_BTHD", a.x_BTHD.dtype(), a.x_BTHD});
  }
  void check_rest() const {
    TM_CHECK(x_BTHD.dims() == 4 && x_BTHD.size(3) % 2 == 0 && position >= 0,
             "rope needs [B, T, H, D] with an even head width and positions from 0 on, got ", x_BTHD.shape(),
             " and position ", position);
  }
  OpCounts counts() const { return {.elementwise = 3 * elements(y_BTHD)}; }
};

// The transpose: rotation by the negative angle.
struct RopeBackward {
  static constexpr const char* kName = "rope_backward";
  static constexpr Split kSplit = Split::sequences;
  Tensor dx_BTHD;  // may be the same memory as dy
  ConstTensor dy_BTHD;
  int64_t position;
  double theta;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    f(a.dx_BTHD, {"dx_BTHD", a.dy_BTHD.dtype(), a.dy_BTHD});
    f(a.dy_BTHD, {"dy_BTHD", a.dy_BTHD.dtype(), a.dy_BTHD});
  }
  void check_rest() const { RopeForward{dx_BTHD, dy_BTHD, position, theta}.check_rest(); }
  OpCounts counts() const { return {.elementwise = 3 * elements(dx_BTHD)}; }
};

#define TMAMBA_CONV_OPS(X)                     \
  X(conv_silu_forward, ConvSiluForward)        \
  X(conv_silu_backward, ConvSiluBackward)      \
  X(conv_silu_rope_forward, ConvRopeForward)   \
  X(conv_silu_rope_backward, ConvRopeBackward) \
  X(rope_forward, RopeForward)                 \
  X(rope_backward, RopeBackward)

}  // namespace tmamba
