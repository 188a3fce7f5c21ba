// The SSM of the suffix (Mamba-2's SSD) and what carries its states across segments.
#pragma once

#include "kernels/ops/op_args.h"

namespace tmamba {

// dt = softplus(raw + bias);  log_a = -dt * exp(A_log)
struct DtForward {
  static constexpr const char* kName = "dt_forward";
  static constexpr Split kSplit = Split::rows;
  Tensor dt_NH;     // [acc]
  Tensor log_a_NH;  // [acc]
  ConstTensor raw_NH;
  ConstTensor bias_H;
  ConstTensor A_log_H;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.raw_NH.size(0), H = a.raw_NH.size(1);
    const DType A = a.raw_NH.dtype(), acc = accumulate_type(A);
    f(a.dt_NH, {"dt_NH", acc, {N, H}});
    f(a.log_a_NH, {"log_a_NH", acc, {N, H}});
    f(a.raw_NH, {"raw_NH", A, {N, H}});
    f(a.bias_H, {"bias_H", A, {H}});
    f(a.A_log_H, {"A_log_H", A, {H}});
  }
  OpCounts counts() const { return {.elementwise = 6 * elements(dt_NH)}; }
};

struct DtBackward {
  static constexpr const char* kName = "dt_backward";
  static constexpr Split kSplit = Split::rows;
  Tensor draw_NH;
  Tensor dbias_H;         // [acc] added
  Tensor dA_log_H;        // [acc] added
  ConstTensor ddt_NH;     // [acc] with log_a held fixed
  ConstTensor dlog_a_NH;  // [acc]
  ConstTensor raw_NH;
  ConstTensor bias_H;
  ConstTensor A_log_H;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.raw_NH.size(0), H = a.raw_NH.size(1);
    const DType A = a.raw_NH.dtype(), acc = accumulate_type(A);
    f(a.draw_NH, {"draw_NH", A, {N, H}});
    f(a.dbias_H, {"dbias_H", acc, {H}, kTokenSum});
    f(a.dA_log_H, {"dA_log_H", acc, {H}, kTokenSum});
    f(a.ddt_NH, {"ddt_NH", acc, {N, H}});
    f(a.dlog_a_NH, {"dlog_a_NH", acc, {N, H}});
    f(a.raw_NH, {"raw_NH", A, {N, H}});
    f(a.bias_H, {"bias_H", A, {H}});
    f(a.A_log_H, {"A_log_H", A, {H}});
  }
  OpCounts counts() const { return {.elementwise = 10 * elements(draw_NH)}; }
};

// The work of one pass over the chunks of an SSM scan: `pair_products` multiply-adds per channel and causal pair within
// a chunk, `state_products` per channel and token with the state.
inline OpCounts ssd_pass(const ConstTensor& k_BTHD, int64_t chunk, double pair_products, double state_products) {
  const int64_t T = k_BTHD.size(1), D = k_BTHD.size(3);
  const int64_t whole = T / chunk, rest = T % chunk;
  const double causal = static_cast<double>(whole * (chunk * (chunk + 1) / 2) + rest * (rest + 1) / 2);
  const double heads = static_cast<double>(k_BTHD.size(0) * k_BTHD.size(2)), width = static_cast<double>(D);
  return {.ssd = heads * 2 * width * (pair_products * causal + state_products * static_cast<double>(T) * width)};
}

// The SSM scan over T tokens (model/SPEC.md sections 2 and 3; Mamba-2's SSD in chunks of `chunk` tokens):
//   S_t = exp(log_a_t) S_{t-1} + k_t (dt_t v_t)^T        S is K x D, key x value
//   y_t = S_t^T q_t + D v_t
// Without q (q, D and y absent) no outputs are computed: that is the Memory Converter (paper eq. 9), and the summary of
// a segment for the scan across segments.
struct SsdForward {
  static constexpr const char* kName = "ssd_forward";
  static constexpr Split kSplit = Split::sequences;
  Tensor y_BTHD = {};
  Tensor final_state_BHKD = {};  // [acc] S after the last token; may be the same memory as initial_state
  Tensor log_decay_BH = {};      // [acc] sum_t log_a_t
  ConstTensor q_BTHD = {};
  ConstTensor k_BTHD;
  ConstTensor v_BTHD;
  ConstTensor dt_BTH;                   // [acc]
  ConstTensor log_a_BTH;                // [acc] <= 0
  ConstTensor D_H = {};                 // type A
  ConstTensor initial_state_BHKD = {};  // [acc] S before the first token; absent: zero
  int64_t chunk = 64;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.k_BTHD.size(0), T = a.k_BTHD.size(1), H = a.k_BTHD.size(2), K = a.k_BTHD.size(3);
    const int64_t D = a.v_BTHD.size(3);
    const DType A = a.k_BTHD.dtype(), acc = accumulate_type(A);
    f(a.y_BTHD, {"y_BTHD", A, {B, T, H, D}, a.q_BTHD.empty() ? kOptional : 0});
    f(a.final_state_BHKD, {"final_state_BHKD", acc, {B, H, K, D}, kOptional});
    f(a.log_decay_BH, {"log_decay_BH", acc, {B, H}, kOptional | kUncounted});
    f(a.q_BTHD, {"q_BTHD", A, {B, T, H, K}, kOptional});
    f(a.k_BTHD, {"k_BTHD", A, {B, T, H, K}});
    f(a.v_BTHD, {"v_BTHD", A, {B, T, H, D}});
    f(a.dt_BTH, {"dt_BTH", acc, {B, T, H}});
    f(a.log_a_BTH, {"log_a_BTH", acc, {B, T, H}});
    f(a.D_H, {"D_H", A, {H}, kOptional | kUncounted});
    f(a.initial_state_BHKD, {"initial_state_BHKD", acc, {B, H, K, D}, kOptional});
  }
  void check_rest() const {
    TM_CHECK(!q_BTHD.empty() || k_BTHD.size(1) == 0 || y_BTHD.empty(), "ssd: y_BTHD needs q_BTHD");
    TM_CHECK(chunk >= 1, "ssd: chunk is ", chunk);
  }
  // Outputs: scores and values within a chunk (2 pair products), the state read (1) and updated (1). Converter: the
  // update alone.
  OpCounts counts() const {
    const bool outputs = q_BTHD.dims() > 0;
    return ssd_pass(k_BTHD, chunk, outputs ? 2 : 0, outputs ? 2 : 1);
  }
};

// With G_t = dL/dS_t: G = final_state's gradient plus what the outputs give, carried backward by the decays.
struct SsdBackward {
  static constexpr const char* kName = "ssd_backward";
  static constexpr Split kSplit = Split::sequences;
  Tensor dq_BTHD = {};  // absent where q is
  Tensor dk_BTHD;
  Tensor dv_BTHD;                      // added where accumulate_v
  Tensor ddt_BTH;                      // [acc] the part through dt_t v_t alone, not through log_a
  Tensor dlog_a_BTH;                   // [acc]
  Tensor dD_H = {};                    // [acc] added; absent where D is
  Tensor dinitial_state_BHKD = {};     // [acc] may be the same memory as dfinal_state
  ConstTensor dy_BTHD = {};            // absent where q is
  ConstTensor dfinal_state_BHKD = {};  // [acc] absent: zero
  ConstTensor q_BTHD = {};
  ConstTensor k_BTHD;
  ConstTensor v_BTHD;
  ConstTensor dt_BTH;
  ConstTensor log_a_BTH;
  ConstTensor D_H = {};
  ConstTensor initial_state_BHKD = {};
  int64_t chunk = 64;
  bool accumulate_v = false;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.k_BTHD.size(0), T = a.k_BTHD.size(1), H = a.k_BTHD.size(2), K = a.k_BTHD.size(3);
    const int64_t D = a.v_BTHD.size(3);
    const DType A = a.k_BTHD.dtype(), acc = accumulate_type(A);
    const unsigned of_outputs = a.q_BTHD.empty() ? kOptional : 0;
    const unsigned of_skip = a.D_H.empty() ? kOptional : of_outputs;
    f(a.dq_BTHD, {"dq_BTHD", A, {B, T, H, K}, of_outputs});
    f(a.dk_BTHD, {"dk_BTHD", A, {B, T, H, K}});
    f(a.dv_BTHD, {"dv_BTHD", A, {B, T, H, D}});
    f(a.ddt_BTH, {"ddt_BTH", acc, {B, T, H}});
    f(a.dlog_a_BTH, {"dlog_a_BTH", acc, {B, T, H}});
    f(a.dD_H, {"dD_H", acc, {H}, of_skip | kTokenSum | kUncounted});
    f(a.dinitial_state_BHKD, {"dinitial_state_BHKD", acc, {B, H, K, D}, kOptional | kUncounted});
    f(a.dy_BTHD, {"dy_BTHD", A, {B, T, H, D}, of_outputs});
    f(a.dfinal_state_BHKD, {"dfinal_state_BHKD", acc, {B, H, K, D}, kOptional | kUncounted});
    f(a.q_BTHD, {"q_BTHD", A, {B, T, H, K}, kOptional});
    f(a.k_BTHD, {"k_BTHD", A, {B, T, H, K}});
    f(a.v_BTHD, {"v_BTHD", A, {B, T, H, D}});
    f(a.dt_BTH, {"dt_BTH", acc, {B, T, H}});
    f(a.log_a_BTH, {"log_a_BTH", acc, {B, T, H}});
    f(a.D_H, {"D_H", A, {H}, kOptional | kUncounted});
    f(a.initial_state_BHKD, {"initial_state_BHKD", acc, {B, H, K, D}, kOptional});
  }
  void check_rest() const { TM_CHECK(chunk >= 1, "ssd: chunk is ", chunk); }
  // Outputs: scores, values' gradients, dq, dk, dv within a chunk (5), state rebuilt (1), dq and G's update (2), dk and
  // dv through G (2). Converter: state rebuilt (1), dk and dv through G (2).
  OpCounts counts() const {
    const bool outputs = q_BTHD.dims() > 0;
    return ssd_pass(k_BTHD, chunk, outputs ? 5 : 0, outputs ? 5 : 3);
  }
};

// dinitial = sum_t exp(log_a_0 + .. + log_a_t) q_t dy_t^T: the gradient of the state before a segment through the
// segment's outputs alone.
struct SsdAdjoint {
  static constexpr const char* kName = "ssd_adjoint";
  static constexpr Split kSplit = Split::sequences;
  Tensor dinitial_BHKD;      // [acc]
  Tensor log_decay_BH = {};  // [acc] sum_t log_a_t
  ConstTensor q_BTHD;
  ConstTensor dy_BTHD;
  ConstTensor log_a_BTH;  // [acc]
  int64_t chunk = 64;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.q_BTHD.size(0), T = a.q_BTHD.size(1), H = a.q_BTHD.size(2), K = a.q_BTHD.size(3);
    const int64_t D = a.dy_BTHD.size(3);
    const DType A = a.q_BTHD.dtype(), acc = accumulate_type(A);
    f(a.dinitial_BHKD, {"dinitial_BHKD", acc, {B, H, K, D}});
    f(a.log_decay_BH, {"log_decay_BH", acc, {B, H}, kOptional});
    f(a.q_BTHD, {"q_BTHD", A, {B, T, H, K}});
    f(a.dy_BTHD, {"dy_BTHD", A, {B, T, H, D}});
    f(a.log_a_BTH, {"log_a_BTH", acc, {B, T, H}});
  }
  void check_rest() const { TM_CHECK(chunk >= 1, "ssd_adjoint: chunk is ", chunk); }
  OpCounts counts() const { return ssd_pass(q_BTHD, chunk, 0, 1); }
};

// state *= exp(sum_t log_a_t): a state, or the gradient of one, carried over T tokens that add nothing.
struct SsdDecay {
  static constexpr const char* kName = "ssd_decay";
  static constexpr Split kSplit = Split::none;
  Tensor state_BHKD;      // [acc]
  ConstTensor log_a_BTH;  // [acc]

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t B = a.state_BHKD.size(0), H = a.state_BHKD.size(1), K = a.state_BHKD.size(2);
    const int64_t D = a.state_BHKD.size(3), T = a.log_a_BTH.size(1);
    const DType acc = a.state_BHKD.dtype();
    f(a.state_BHKD, {"state_BHKD", acc, {B, H, K, D}});
    f(a.log_a_BTH, {"log_a_BTH", acc, {B, T, H}});
  }
  OpCounts counts() const { return {.elementwise = elements(state_BHKD)}; }
};

// Exclusive scan over K segments of states (E elements each, or a slice of them): out_0 = 0,
// out_{k+1} = exp(decay_k) out_k + in_k; reversed out_{K-1} = 0, out_{k-1} = exp(decay_k) out_k + in_k. All [acc].
struct SegmentScan {
  static constexpr const char* kName = "segment_scan";
  static constexpr Split kSplit = Split::none;
  Tensor out_KBHE;
  ConstTensor in_KBHE;
  ConstTensor decay_KBH;
  bool reverse = false;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t K = a.out_KBHE.size(0), B = a.out_KBHE.size(1), H = a.out_KBHE.size(2), E = a.out_KBHE.size(3);
    const DType acc = a.out_KBHE.dtype();
    f(a.out_KBHE, {"out_KBHE", acc, {K, B, H, E}});
    f(a.in_KBHE, {"in_KBHE", acc, {K, B, H, E}});
    f(a.decay_KBH, {"decay_KBH", acc, {K, B, H}});
  }
  OpCounts counts() const { return {.elementwise = 2 * elements(out_KBHE)}; }
};

#define TMAMBA_SSD_OPS(X)      \
  X(dt_forward, DtForward)     \
  X(dt_backward, DtBackward)   \
  X(ssd_forward, SsdForward)   \
  X(ssd_backward, SsdBackward) \
  X(ssd_adjoint, SsdAdjoint)   \
  X(ssd_decay, SsdDecay)       \
  X(segment_scan, SegmentScan)

}  // namespace tmamba
