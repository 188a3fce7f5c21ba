#include "kernels/ops/checks.h"
#include "kernels/ops/op_checks.h"

namespace tmamba {

namespace {

void check_conv_inputs(Device device, const ConstTensor& x_BTC, const ConstTensor& halo_BWC, const ConstTensor& w_CW,
                       const ConstTensor& b_C) {
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2), W = w_CW.size(1);
  const DType dtype = x_BTC.dtype();
  TM_CHECK(W >= 1, "conv w_CW ", w_CW.shape(), " has no taps");
  expect_on(device, x_BTC, "conv x_BTC", dtype, {B, T, C});
  expect_optional_on(device, halo_BWC, "conv halo_BWC", dtype, {B, W - 1, C});
  expect_on(device, w_CW, "conv w_CW", dtype, {C, W});
  expect_on(device, b_C, "conv b_C", dtype, {C});
}

// What the forward and the backward pass of attention have in common.
template <class Args>
void check_attention_inputs(Device device, const Args& args) {
  const int64_t B = args.q_BTHD.size(0), T = args.q_BTHD.size(1), H = args.q_BTHD.size(2), D = args.q_BTHD.size(3);
  const int64_t S = args.k_BSHD.size(1);
  const DType dtype = args.q_BTHD.dtype();
  expect_on(device, args.o_BTHD, "attention o_BTHD", dtype, {B, T, H, D});
  expect_on(device, args.lse_BTH, "attention lse_BTH", accumulate_type(dtype), {B, T, H});
  expect_on(device, args.q_BTHD, "attention q_BTHD", dtype, {B, T, H, D});
  expect_on(device, args.k_BSHD, "attention k_BSHD", dtype, {B, S, H, D});
  expect_on(device, args.v_BSHD, "attention v_BSHD", dtype, {B, S, H, D});
  TM_CHECK(args.q_begin >= 0 && args.q_begin + T <= S, "attention: queries ", args.q_begin, " .. ", args.q_begin + T,
           " need as many keys, there are ", S);
}

// The sizes of an SSM scan.
struct SsdSizes {
  int64_t B, T, H, K, D;
  template <class Args>
  explicit SsdSizes(const Args& args)
      : B(args.k_BTHD.size(0)),
        T(args.k_BTHD.size(1)),
        H(args.k_BTHD.size(2)),
        K(args.k_BTHD.size(3)),
        D(args.v_BTHD.size(3)) {}
};

// What the forward and the backward pass of the scan have in common.
template <class Args>
void check_ssd_inputs(Device device, const Args& args) {
  const auto [B, T, H, K, D] = SsdSizes(args);
  const DType dtype = args.k_BTHD.dtype(), acc = accumulate_type(dtype);
  expect_on(device, args.k_BTHD, "ssd k_BTHD", dtype, {B, T, H, K});
  expect_on(device, args.v_BTHD, "ssd v_BTHD", dtype, {B, T, H, D});
  expect_on(device, args.dt_BTH, "ssd dt_BTH", acc, {B, T, H});
  expect_on(device, args.log_a_BTH, "ssd log_a_BTH", acc, {B, T, H});
  if (!args.q_BTHD.empty()) {
    expect_on(device, args.q_BTHD, "ssd q_BTHD", dtype, {B, T, H, K});
    expect_optional_on(device, args.D_H, "ssd D_H", dtype, {H});
  }
  expect_optional_on(device, args.initial_state_BHKD, "ssd initial_state_BHKD", acc, {B, H, K, D});
  TM_CHECK(args.chunk >= 1, "ssd: chunk is ", args.chunk);
}

}  // namespace

void check_conv_silu_forward(Device device, const Tensor& y_BTC, const ConstTensor& x_BTC, const ConstTensor& halo_BWC,
                             const ConstTensor& w_CW, const ConstTensor& b_C) {
  check_conv_inputs(device, x_BTC, halo_BWC, w_CW, b_C);
  expect_on(device, y_BTC, "conv y_BTC", x_BTC.dtype(), {x_BTC.size(0), x_BTC.size(1), x_BTC.size(2)});
}

void check_conv_silu_backward(Device device, const Tensor& dx_BTC, const Tensor& dhalo_BWC, const Tensor& dw_CW,
                              const Tensor& db_C, const ConstTensor& dy_BTC, const ConstTensor& x_BTC,
                              const ConstTensor& halo_BWC, const ConstTensor& w_CW, const ConstTensor& b_C) {
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2), W = w_CW.size(1);
  const DType dtype = x_BTC.dtype();
  check_conv_inputs(device, x_BTC, halo_BWC, w_CW, b_C);
  expect_on(device, dx_BTC, "conv dx_BTC", dtype, {B, T, C});
  expect_optional_on(device, dhalo_BWC, "conv dhalo_BWC", dtype, {B, W - 1, C});
  expect_on(device, dw_CW, "conv dw_CW", accumulate_type(dtype), {C, W});
  expect_on(device, db_C, "conv db_C", accumulate_type(dtype), {C});
  expect_on(device, dy_BTC, "conv dy_BTC", dtype, {B, T, C});
}

void check_rope(Device device, const Tensor& y_BTHD, const ConstTensor& x_BTHD, int64_t position) {
  const int64_t B = x_BTHD.size(0), T = x_BTHD.size(1), H = x_BTHD.size(2), D = x_BTHD.size(3);
  expect_on(device, y_BTHD, "rope y_BTHD", x_BTHD.dtype(), {B, T, H, D});
  expect_on(device, x_BTHD, "rope x_BTHD", x_BTHD.dtype(), {B, T, H, D});
  TM_CHECK(D % 2 == 0 && position >= 0, "rope needs an even head width and positions from 0 on, got width ", D,
           " and position ", position);
}

void check_attention_forward(Device device, const AttentionForward& args) { check_attention_inputs(device, args); }

void check_attention_backward(Device device, const AttentionBackward& args) {
  const int64_t B = args.q_BTHD.size(0), T = args.q_BTHD.size(1), H = args.q_BTHD.size(2), D = args.q_BTHD.size(3);
  const int64_t S = args.k_BSHD.size(1);
  const DType dtype = args.q_BTHD.dtype();
  expect_on(device, args.dq_BTHD, "attention dq_BTHD", dtype, {B, T, H, D});
  expect_on(device, args.dk_BSHD, "attention dk_BSHD", dtype, {B, S, H, D});
  expect_on(device, args.dv_BSHD, "attention dv_BSHD", dtype, {B, S, H, D});
  expect_on(device, args.do_BTHD, "attention do_BTHD", dtype, {B, T, H, D});
  check_attention_inputs(device, args);
}

void check_dt_forward(Device device, const Tensor& dt_NH, const Tensor& log_a_NH, const ConstTensor& raw_NH,
                      const ConstTensor& bias_H, const ConstTensor& A_log_H) {
  const int64_t N = raw_NH.size(0), H = raw_NH.size(1);
  const DType dtype = raw_NH.dtype();
  expect_on(device, dt_NH, "dt dt_NH", accumulate_type(dtype), {N, H});
  expect_on(device, log_a_NH, "dt log_a_NH", accumulate_type(dtype), {N, H});
  expect_on(device, raw_NH, "dt raw_NH", dtype, {N, H});
  expect_on(device, bias_H, "dt bias_H", dtype, {H});
  expect_on(device, A_log_H, "dt A_log_H", dtype, {H});
}

void check_dt_backward(Device device, const Tensor& draw_NH, const Tensor& dbias_H, const Tensor& dA_log_H,
                       const ConstTensor& ddt_NH, const ConstTensor& dlog_a_NH, const ConstTensor& raw_NH,
                       const ConstTensor& bias_H, const ConstTensor& A_log_H) {
  const int64_t N = raw_NH.size(0), H = raw_NH.size(1);
  const DType dtype = raw_NH.dtype();
  expect_on(device, draw_NH, "dt draw_NH", dtype, {N, H});
  expect_on(device, dbias_H, "dt dbias_H", accumulate_type(dtype), {H});
  expect_on(device, dA_log_H, "dt dA_log_H", accumulate_type(dtype), {H});
  expect_on(device, ddt_NH, "dt ddt_NH", accumulate_type(dtype), {N, H});
  expect_on(device, dlog_a_NH, "dt dlog_a_NH", accumulate_type(dtype), {N, H});
  expect_on(device, raw_NH, "dt raw_NH", dtype, {N, H});
  expect_on(device, bias_H, "dt bias_H", dtype, {H});
  expect_on(device, A_log_H, "dt A_log_H", dtype, {H});
}

void check_ssd_forward(Device device, const SsdForward& args) {
  check_ssd_inputs(device, args);
  const auto [B, T, H, K, D] = SsdSizes(args);
  const DType dtype = args.k_BTHD.dtype(), acc = accumulate_type(dtype);
  if (!args.q_BTHD.empty()) {
    expect_on(device, args.y_BTHD, "ssd y_BTHD", dtype, {B, T, H, D});
  } else {
    TM_CHECK(T == 0 || args.y_BTHD.empty(), "ssd: y_BTHD needs q_BTHD");
  }
  expect_optional_on(device, args.final_state_BHKD, "ssd final_state_BHKD", acc, {B, H, K, D});
  expect_optional_on(device, args.log_decay_BH, "ssd log_decay_BH", acc, {B, H});
}

void check_ssd_backward(Device device, const SsdBackward& args) {
  check_ssd_inputs(device, args);
  const auto [B, T, H, K, D] = SsdSizes(args);
  const DType dtype = args.k_BTHD.dtype(), acc = accumulate_type(dtype);
  expect_on(device, args.dk_BTHD, "ssd dk_BTHD", dtype, {B, T, H, K});
  expect_on(device, args.dv_BTHD, "ssd dv_BTHD", dtype, {B, T, H, D});
  expect_on(device, args.ddt_BTH, "ssd ddt_BTH", acc, {B, T, H});
  expect_on(device, args.dlog_a_BTH, "ssd dlog_a_BTH", acc, {B, T, H});
  if (!args.q_BTHD.empty()) {
    expect_on(device, args.dq_BTHD, "ssd dq_BTHD", dtype, {B, T, H, K});
    expect_on(device, args.dy_BTHD, "ssd dy_BTHD", dtype, {B, T, H, D});
    if (!args.D_H.empty()) expect_on(device, args.dD_H, "ssd dD_H", acc, {H});
  }
  expect_optional_on(device, args.dinitial_state_BHKD, "ssd dinitial_state_BHKD", acc, {B, H, K, D});
  expect_optional_on(device, args.dfinal_state_BHKD, "ssd dfinal_state_BHKD", acc, {B, H, K, D});
}

void check_ssd_adjoint(Device device, const Tensor& dinitial_BHKD, const Tensor& log_decay_BH,
                       const ConstTensor& q_BTHD, const ConstTensor& dy_BTHD, const ConstTensor& log_a_BTH,
                       int64_t chunk) {
  const int64_t B = q_BTHD.size(0), T = q_BTHD.size(1), H = q_BTHD.size(2), K = q_BTHD.size(3), D = dy_BTHD.size(3);
  const DType dtype = q_BTHD.dtype(), acc = accumulate_type(dtype);
  expect_on(device, dinitial_BHKD, "ssd_adjoint dinitial_BHKD", acc, {B, H, K, D});
  expect_optional_on(device, log_decay_BH, "ssd_adjoint log_decay_BH", acc, {B, H});
  expect_on(device, q_BTHD, "ssd_adjoint q_BTHD", dtype, {B, T, H, K});
  expect_on(device, dy_BTHD, "ssd_adjoint dy_BTHD", dtype, {B, T, H, D});
  expect_on(device, log_a_BTH, "ssd_adjoint log_a_BTH", acc, {B, T, H});
  TM_CHECK(chunk >= 1, "ssd_adjoint: chunk is ", chunk);
}

void check_ssd_decay(Device device, const Tensor& state_BHKD, const ConstTensor& log_a_BTH) {
  const int64_t B = state_BHKD.size(0), H = state_BHKD.size(1), K = state_BHKD.size(2), D = state_BHKD.size(3);
  const DType dtype = state_BHKD.dtype();
  expect_on(device, state_BHKD, "ssd_decay state_BHKD", dtype, {B, H, K, D});
  expect_on(device, log_a_BTH, "ssd_decay log_a_BTH", dtype, {B, log_a_BTH.size(1), H});
}

void check_segment_scan(Device device, const Tensor& out_KBHE, const ConstTensor& in_KBHE,
                        const ConstTensor& decay_KBH) {
  const int64_t K = out_KBHE.size(0), B = out_KBHE.size(1), H = out_KBHE.size(2), E = out_KBHE.size(3);
  const DType dtype = out_KBHE.dtype();
  expect_on(device, out_KBHE, "segment_scan out_KBHE", dtype, {K, B, H, E});
  expect_on(device, in_KBHE, "segment_scan in_KBHE", dtype, {K, B, H, E});
  expect_on(device, decay_KBH, "segment_scan decay_KBH", dtype, {K, B, H});
}

void check_gated_norm_forward(Device device, const Tensor& out_BTHD, const Tensor& rstd_BTH, const ConstTensor& y_BTHD,
                              const ConstTensor& z_BTHD, const ConstTensor& w_HD) {
  const int64_t B = y_BTHD.size(0), T = y_BTHD.size(1), H = y_BTHD.size(2), D = y_BTHD.size(3);
  const DType dtype = y_BTHD.dtype();
  expect_on(device, out_BTHD, "gated_norm out_BTHD", dtype, {B, T, H, D});
  expect_on(device, rstd_BTH, "gated_norm rstd_BTH", accumulate_type(dtype), {B, T, H});
  expect_on(device, y_BTHD, "gated_norm y_BTHD", dtype, {B, T, H, D});
  expect_optional_on(device, z_BTHD, "gated_norm z_BTHD", dtype, {B, T, H, D});
  expect_on(device, w_HD, "gated_norm w_HD", dtype, {H, D});
}

void check_gated_norm_backward(Device device, const Tensor& dy_BTHD, const Tensor& dz_BTHD, const Tensor& dw_HD,
                               const ConstTensor& dout_BTHD, const ConstTensor& y_BTHD, const ConstTensor& z_BTHD,
                               const ConstTensor& rstd_BTH, const ConstTensor& w_HD) {
  const int64_t B = y_BTHD.size(0), T = y_BTHD.size(1), H = y_BTHD.size(2), D = y_BTHD.size(3);
  const DType dtype = y_BTHD.dtype();
  expect_on(device, dy_BTHD, "gated_norm dy_BTHD", dtype, {B, T, H, D});
  if (!z_BTHD.empty()) expect_on(device, dz_BTHD, "gated_norm dz_BTHD", dtype, {B, T, H, D});
  expect_on(device, dw_HD, "gated_norm dw_HD", accumulate_type(dtype), {H, D});
  expect_on(device, dout_BTHD, "gated_norm dout_BTHD", dtype, {B, T, H, D});
  expect_on(device, y_BTHD, "gated_norm y_BTHD", dtype, {B, T, H, D});
  expect_optional_on(device, z_BTHD, "gated_norm z_BTHD", dtype, {B, T, H, D});
  expect_on(device, rstd_BTH, "gated_norm rstd_BTH", accumulate_type(dtype), {B, T, H});
  expect_on(device, w_HD, "gated_norm w_HD", dtype, {H, D});
}

}  // namespace tmamba
