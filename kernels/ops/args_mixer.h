// Attention over the prefix, and the gated norm of the mixers' outputs.
#pragma once

#include "kernels/ops/op_args.h"

namespace tmamba {

// Causal softmax attention of some queries over a prefix of keys (model/SPEC.md section 2; paper eq. 2).
// Query i of the T given has position q_begin + i and sees keys 0 .. q_begin + i, so S >= q_begin + T.
// Keys from q_begin + T on are not read.
struct AttentionForward {
  static constexpr const char* kName = "attention_forward";
  static constexpr Split kSplit = Split::sequences;
  Tensor o_BTHD;       // sum_s softmax_s(q . k_s * scale) v_s
  Tensor lse_BTH;      // [acc] log sum_s exp(q . k_s * scale), saved for backward
  ConstTensor q_BTHD;  // rotated
  ConstTensor k_BSHD;  // rotated
  ConstTensor v_BSHD;
  int64_t q_begin = 0;
  double scale = 1.0;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.q_BTHD.size(0), T = a.q_BTHD.size(1), H = a.q_BTHD.size(2), D = a.q_BTHD.size(3);
    const int64_t S = a.k_BSHD.size(1);
    const DType A = a.q_BTHD.dtype();
    f(a.o_BTHD, {"o_BTHD", A, {B, T, H, D}});
    f(a.lse_BTH, {"lse_BTH", accumulate_type(A), {B, T, H}});
    f(a.q_BTHD, {"q_BTHD", A, {B, T, H, D}});
    f(a.k_BSHD, {"k_BSHD", A, {B, S, H, D}});
    f(a.v_BSHD, {"v_BSHD", A, {B, S, H, D}});
  }
  void check_rest() const {
    const int64_t T = q_BTHD.size(1), S = k_BSHD.size(1);
    TM_CHECK(q_begin >= 0 && q_begin + T <= S, "attention: queries ", q_begin, " .. ", q_begin + T,
             " need as many keys, there are ", S);
  }
  // Multiply-adds of one GEMM under the causal mask: one per channel for each query and each key that it sees.
  double causal_products() const {
    const double T = static_cast<double>(q_BTHD.size(1)), begin = static_cast<double>(q_begin);
    const double pairs = static_cast<double>(q_BTHD.size(0) * q_BTHD.size(2)) * (T * begin + T * (T + 1) / 2);
    return pairs * static_cast<double>(q_BTHD.size(3));
  }
  OpCounts counts() const { return {.attention = 4 * causal_products()}; }
};

struct AttentionBackward {
  static constexpr const char* kName = "attention_backward";
  static constexpr Split kSplit = Split::sequences;
  Tensor dq_BTHD;
  Tensor dk_BSHD;  // added, keys 0 .. q_begin + T - 1
  Tensor dv_BSHD;  // added
  ConstTensor do_BTHD;
  ConstTensor o_BTHD;
  ConstTensor lse_BTH;  // [acc]
  ConstTensor q_BTHD;
  ConstTensor k_BSHD;
  ConstTensor v_BSHD;
  int64_t q_begin = 0;
  double scale = 1.0;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.q_BTHD.size(0), T = a.q_BTHD.size(1), H = a.q_BTHD.size(2), D = a.q_BTHD.size(3);
    const int64_t S = a.k_BSHD.size(1);
    const DType A = a.q_BTHD.dtype();
    f(a.dq_BTHD, {"dq_BTHD", A, {B, T, H, D}});
    f(a.dk_BSHD, {"dk_BSHD", A, {B, S, H, D}, kTokenSum});
    f(a.dv_BSHD, {"dv_BSHD", A, {B, S, H, D}, kTokenSum});
    f(a.do_BTHD, {"do_BTHD", A, {B, T, H, D}});
    f(a.o_BTHD, {"o_BTHD", A, {B, T, H, D}});
    f(a.lse_BTH, {"lse_BTH", accumulate_type(A), {B, T, H}});
    f(a.q_BTHD, {"q_BTHD", A, {B, T, H, D}});
    f(a.k_BSHD, {"k_BSHD", A, {B, S, H, D}});
    f(a.v_BSHD, {"v_BSHD", A, {B, S, H, D}});
  }
  // Queries, keys and their positions alone.
  AttentionForward forward() const {
    return {.o_BTHD = {},
            .lse_BTH = {},
            .q_BTHD = q_BTHD,
            .k_BSHD = k_BSHD,
            .v_BSHD = v_BSHD,
            .q_begin = q_begin,
            .scale = scale};
  }
  void check_rest() const { forward().check_rest(); }
  OpCounts counts() const { return {.attention = 10 * forward().causal_products()}; }
};

// out = g * rstd * w per head, with g = y * SiLU(z) and rstd over D, saved for backward. Without z, g = y.
struct GatedNormForward {
  static constexpr const char* kName = "gated_norm_forward";
  static constexpr Split kSplit = Split::tokens;
  Tensor out_BTHD;
  Tensor rstd_BTH;  // [acc]
  ConstTensor y_BTHD;
  ConstTensor z_BTHD = {};
  ConstTensor w_HD;
  double eps;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.y_BTHD.size(0), T = a.y_BTHD.size(1), H = a.y_BTHD.size(2), D = a.y_BTHD.size(3);
    const DType A = a.y_BTHD.dtype();
    f(a.out_BTHD, {"out_BTHD", A, {B, T, H, D}});
    f(a.rstd_BTH, {"rstd_BTH", accumulate_type(A), {B, T, H}});
    f(a.y_BTHD, {"y_BTHD", A, {B, T, H, D}});
    f(a.z_BTHD, {"z_BTHD", A, {B, T, H, D}, kOptional});
    f(a.w_HD, {"w_HD", A, {H, D}});
  }
  OpCounts counts() const { return {.elementwise = 9 * elements(out_BTHD)}; }
};

struct GatedNormBackward {
  static constexpr const char* kName = "gated_norm_backward";
  static constexpr Split kSplit = Split::tokens;
  Tensor dy_BTHD;       // may be the same memory as dout
  Tensor dz_BTHD = {};  // present where z is
  Tensor dw_HD;         // [acc] added
  ConstTensor dout_BTHD;
  ConstTensor y_BTHD;
  ConstTensor z_BTHD = {};
  ConstTensor rstd_BTH;  // [acc]
  ConstTensor w_HD;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.y_BTHD.size(0), T = a.y_BTHD.size(1), H = a.y_BTHD.size(2), D = a.y_BTHD.size(3);
    const DType A = a.y_BTHD.dtype(), acc = accumulate_type(A);
    f(a.dy_BTHD, {"dy_BTHD", A, {B, T, H, D}});
    f(a.dz_BTHD, {"dz_BTHD", A, {B, T, H, D}, a.z_BTHD.empty() ? kOptional : 0});
    f(a.dw_HD, {"dw_HD", acc, {H, D}, kTokenSum});
    f(a.dout_BTHD, {"dout_BTHD", A, {B, T, H, D}});
    f(a.y_BTHD, {"y_BTHD", A, {B, T, H, D}});
    f(a.z_BTHD, {"z_BTHD", A, {B, T, H, D}, kOptional});
    f(a.rstd_BTH, {"rstd_BTH", acc, {B, T, H}});
    f(a.w_HD, {"w_HD", A, {H, D}});
  }
  OpCounts counts() const { return {.elementwise = 18 * elements(dy_BTHD)}; }
};

#define TMAMBA_MIXER_OPS(X)                \
  X(attention_forward, AttentionForward)   \
  X(attention_backward, AttentionBackward) \
  X(gated_norm_forward, GatedNormForward)  \
  X(gated_norm_backward, GatedNormBackward)

}  // namespace tmamba
