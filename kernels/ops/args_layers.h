// Ops on rows: embedding, RMSNorm, linear layers, SwiGLU.
#pragma once

#include "kernels/ops/op_args.h"

namespace tmamba {

// y_n = table[tokens_n - vocab_begin]; zero where that is not a row of the table (vocabulary-parallel shards).
struct EmbeddingForward {
  static constexpr const char* kName = "embedding_forward";
  static constexpr Split kSplit = Split::rows;
  Tensor y_NC;
  ConstTensor table_VC;
  ConstTensor tokens_N;  // int32
  int64_t vocab_begin;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.y_NC.size(0), C = a.y_NC.size(1), V = a.table_VC.size(0);
    const DType A = a.table_VC.dtype();
    f(a.y_NC, {"y_NC", A, {N, C}});
    f(a.table_VC, {"table_VC", A, {V, C}});
    f(a.tokens_N, {"tokens_N", DType::i32, {N}});
  }
  OpCounts counts() const { return {}; }
};

// dtable[tokens_n - vocab_begin] += dy_n, in the order of n.
struct EmbeddingBackward {
  static constexpr const char* kName = "embedding_backward";
  static constexpr Split kSplit = Split::rows;
  Tensor dtable_VC;  // [acc]
  ConstTensor dy_NC;
  ConstTensor tokens_N;  // int32
  int64_t vocab_begin;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.dy_NC.size(0), C = a.dy_NC.size(1), V = a.dtable_VC.size(0);
    const DType A = a.dy_NC.dtype();
    f(a.dtable_VC, {"dtable_VC", accumulate_type(A), {V, C}, kTokenSum});
    f(a.dy_NC, {"dy_NC", A, {N, C}});
    f(a.tokens_N, {"tokens_N", DType::i32, {N}});
  }
  OpCounts counts() const { return {.elementwise = elements(dy_NC)}; }
};

// y = sum * rstd * w, with sum = x + delta and rstd = 1 / sqrt(mean(sum^2) + eps), saved for backward.
// Without delta, sum = x and is not written.
struct RmsnormForward {
  static constexpr const char* kName = "rmsnorm_forward";
  static constexpr Split kSplit = Split::rows;
  Tensor y_NC;
  Tensor rstd_N;       // [acc]
  Tensor sum_NC = {};  // present where delta is
  ConstTensor x_NC;
  ConstTensor delta_NC = {};
  ConstTensor w_C;
  double eps;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.x_NC.size(0), C = a.x_NC.size(1);
    const DType A = a.x_NC.dtype();
    f(a.y_NC, {"y_NC", A, {N, C}});
    f(a.rstd_N, {"rstd_N", accumulate_type(A), {N}});
    f(a.sum_NC, {"sum_NC", A, {N, C}, kOptional});
    f(a.x_NC, {"x_NC", A, {N, C}});
    f(a.delta_NC, {"delta_NC", A, {N, C}, kOptional});
    f(a.w_C, {"w_C", A, {C}});
  }
  void check_rest() const {
    TM_CHECK(sum_NC.empty() == delta_NC.empty(), "rmsnorm: sum_NC and delta_NC come together");
  }
  OpCounts counts() const { return {.elementwise = 5 * elements(y_NC)}; }
};

// dx = dresidual + d(norm)/dx dy and dw += d(norm)/dw dy, with x the normed sum.
struct RmsnormBackward {
  static constexpr const char* kName = "rmsnorm_backward";
  static constexpr Split kSplit = Split::rows;
  Tensor dx_NC;
  Tensor dw_C;  // [acc]
  ConstTensor dy_NC;
  ConstTensor x_NC;
  ConstTensor rstd_N;  // [acc]
  ConstTensor w_C;
  ConstTensor dresidual_NC = {};  // absent: zero; may be the same memory as dx

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.x_NC.size(0), C = a.x_NC.size(1);
    const DType A = a.x_NC.dtype(), acc = accumulate_type(A);
    f(a.dx_NC, {"dx_NC", A, {N, C}});
    f(a.dw_C, {"dw_C", acc, {C}, kTokenSum});
    f(a.dy_NC, {"dy_NC", A, {N, C}});
    f(a.x_NC, {"x_NC", A, {N, C}});
    f(a.rstd_N, {"rstd_N", acc, {N}});
    f(a.w_C, {"w_C", A, {C}});
    f(a.dresidual_NC, {"dresidual_NC", A, {N, C}, kOptional});
  }
  OpCounts counts() const { return {.elementwise = 9 * elements(dx_NC)}; }
};

// y = x w^T
struct LinearForward {
  static constexpr const char* kName = "linear_forward";
  static constexpr Split kSplit = Split::rows;
  Tensor y_NO;
  ConstTensor x_NI;
  ConstTensor w_OI;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.x_NI.size(0), I = a.x_NI.size(1), O = a.w_OI.size(0);
    const DType A = a.x_NI.dtype();
    f(a.y_NO, {"y_NO", A, {N, O}});
    f(a.x_NI, {"x_NI", A, {N, I}});
    f(a.w_OI, {"w_OI", A, {O, I}});
  }
  OpCounts counts() const { return {.linear = 2 * elements(y_NO) * static_cast<double>(w_OI.size(1))}; }
};

// dx = dy w, or dx += dy w where accumulate.
struct LinearBackwardInput {
  static constexpr const char* kName = "linear_backward_input";
  static constexpr Split kSplit = Split::rows;
  Tensor dx_NI;
  ConstTensor dy_NO;
  ConstTensor w_OI;
  bool accumulate = false;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.dy_NO.size(0), O = a.dy_NO.size(1), I = a.w_OI.size(1);
    const DType A = a.dy_NO.dtype();
    f(a.dx_NI, {"dx_NI", A, {N, I}});
    f(a.dy_NO, {"dy_NO", A, {N, O}});
    f(a.w_OI, {"w_OI", A, {O, I}});
  }
  OpCounts counts() const { return {.linear = 2 * elements(dx_NI) * static_cast<double>(w_OI.size(0))}; }
};

// dw += dy^T x
struct LinearBackwardWeight {
  static constexpr const char* kName = "linear_backward_weight";
  static constexpr Split kSplit = Split::rows;
  Tensor dw_OI;  // [acc]
  ConstTensor dy_NO;
  ConstTensor x_NI;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.dy_NO.size(0), O = a.dy_NO.size(1), I = a.x_NI.size(1);
    const DType A = a.dy_NO.dtype();
    f(a.dw_OI, {"dw_OI", accumulate_type(A), {O, I}, kTokenSum});
    f(a.dy_NO, {"dy_NO", A, {N, O}});
    f(a.x_NI, {"x_NI", A, {N, I}});
  }
  OpCounts counts() const { return {.linear = 2 * elements(dw_OI) * static_cast<double>(dy_NO.size(0))}; }
};

// h = SiLU(gate) * up; gate_up has the gate's channels, then those of up.
struct SwigluForward {
  static constexpr const char* kName = "swiglu_forward";
  static constexpr Split kSplit = Split::rows;
  Tensor h_NF;
  ConstTensor gate_up_N2F;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.h_NF.size(0), width = a.h_NF.size(1);
    const DType A = a.h_NF.dtype();
    f(a.h_NF, {"h_NF", A, {N, width}});
    f(a.gate_up_N2F, {"gate_up_N2F", A, {N, 2 * width}});
  }
  OpCounts counts() const { return {.elementwise = 6 * elements(h_NF)}; }
};

struct SwigluBackward {
  static constexpr const char* kName = "swiglu_backward";
  static constexpr Split kSplit = Split::rows;
  Tensor dgate_up_N2F;
  ConstTensor dh_NF;
  ConstTensor gate_up_N2F;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.dh_NF.size(0), width = a.dh_NF.size(1);
    const DType A = a.dh_NF.dtype();
    f(a.dgate_up_N2F, {"dgate_up_N2F", A, {N, 2 * width}});
    f(a.dh_NF, {"dh_NF", A, {N, width}});
    f(a.gate_up_N2F, {"gate_up_N2F", A, {N, 2 * width}});
  }
  OpCounts counts() const { return {.elementwise = 6 * elements(dgate_up_N2F)}; }
};

#define TMAMBA_LAYER_OPS(X)                       \
  X(embedding_forward, EmbeddingForward)          \
  X(embedding_backward, EmbeddingBackward)        \
  X(rmsnorm_forward, RmsnormForward)              \
  X(rmsnorm_backward, RmsnormBackward)            \
  X(linear_forward, LinearForward)                \
  X(linear_backward_input, LinearBackwardInput)   \
  X(linear_backward_weight, LinearBackwardWeight) \
  X(swiglu_forward, SwigluForward)                \
  X(swiglu_backward, SwigluBackward)

}  // namespace tmamba
