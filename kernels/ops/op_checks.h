// What every op checks before it runs, the same on every device: each function throws Error unless the tensors of that
// op (ops.h) have the types and sizes that it asks for and lie on `device`. What only one device cannot do is checked
// by that device's ops.
#pragma once

#include <span>

#include "kernels/ops/ops.h"

namespace tmamba {

// --- op_checks.cpp: elementwise ops, layers, loss and optimizer ------------------------------------------------------

// fill and scale, or copy and add: `op` names the one in messages.
void check_elementwise(Device device, const char* op, const ConstTensor& x);
void check_elementwise(Device device, const char* op, const Tensor& y, const ConstTensor& x);
void check_sum_squares(Device device, const Tensor& out_1, std::span<const ConstTensor> tensors);

void check_embedding_forward(Device device, const Tensor& y_NC, const ConstTensor& table_VC,
                             const ConstTensor& tokens_N);
void check_embedding_backward(Device device, const Tensor& dtable_VC, const ConstTensor& dy_NC,
                              const ConstTensor& tokens_N);

void check_rmsnorm_forward(Device device, const Tensor& y_NC, const Tensor& rstd_N, const Tensor& sum_NC,
                           const ConstTensor& x_NC, const ConstTensor& delta_NC, const ConstTensor& w_C);
void check_rmsnorm_backward(Device device, const Tensor& dx_NC, const Tensor& dw_C, const ConstTensor& dy_NC,
                            const ConstTensor& x_NC, const ConstTensor& rstd_N, const ConstTensor& w_C,
                            const ConstTensor& dresidual_NC);

void check_linear_forward(Device device, const Tensor& y_NO, const ConstTensor& x_NI, const ConstTensor& w_OI);
void check_linear_backward_input(Device device, const Tensor& dx_NI, const ConstTensor& dy_NO, const ConstTensor& w_OI);
void check_linear_backward_weight(Device device, const Tensor& dw_OI, const ConstTensor& dy_NO,
                                  const ConstTensor& x_NI);

void check_swiglu_forward(Device device, const Tensor& h_NF, const ConstTensor& gate_up_N2F);
void check_swiglu_backward(Device device, const Tensor& dgate_up_N2F, const ConstTensor& dh_NF,
                           const ConstTensor& gate_up_N2F);

void check_cross_entropy_stats(Device device, const Tensor& max_N, const Tensor& sum_exp_N, const Tensor& target_N,
                               const ConstTensor& logits_NV, const ConstTensor& targets_N);
void check_cross_entropy_rescale(Device device, const Tensor& sum_exp_N, const ConstTensor& max_N,
                                 const ConstTensor& global_max_N);
void check_cross_entropy_loss(Device device, const Tensor& loss_sum_1, const Tensor& count_1, const Tensor& loss_N,
                              const ConstTensor& max_N, const ConstTensor& sum_exp_N, const ConstTensor& target_N,
                              const ConstTensor& targets_N);
void check_cross_entropy_gradient(Device device, const Tensor& logits_NV, const ConstTensor& max_N,
                                  const ConstTensor& sum_exp_N, const ConstTensor& targets_N);

void check_check_step(Device device, const Tensor& step_S, const ConstTensor& sums_S, const ConstTensor& limits_S);
void check_adamw(Device device, std::span<const AdamwTensor> tensors, const ConstTensor& step_S);

// --- mixer_checks.cpp: what the mixers are made of -------------------------------------------------------------------

void check_conv_silu_forward(Device device, const Tensor& y_BTC, const ConstTensor& x_BTC, const ConstTensor& halo_BWC,
                             const ConstTensor& w_CW, const ConstTensor& b_C);
void check_conv_silu_backward(Device device, const Tensor& dx_BTC, const Tensor& dhalo_BWC, const Tensor& dw_CW,
                              const Tensor& db_C, const ConstTensor& dy_BTC, const ConstTensor& x_BTC,
                              const ConstTensor& halo_BWC, const ConstTensor& w_CW, const ConstTensor& b_C);

// Forward, and backward of the gradients.
void check_rope(Device device, const Tensor& y_BTHD, const ConstTensor& x_BTHD, int64_t position);

void check_attention_forward(Device device, const AttentionForward& args);
void check_attention_backward(Device device, const AttentionBackward& args);

void check_dt_forward(Device device, const Tensor& dt_NH, const Tensor& log_a_NH, const ConstTensor& raw_NH,
                      const ConstTensor& bias_H, const ConstTensor& A_log_H);
void check_dt_backward(Device device, const Tensor& draw_NH, const Tensor& dbias_H, const Tensor& dA_log_H,
                       const ConstTensor& ddt_NH, const ConstTensor& dlog_a_NH, const ConstTensor& raw_NH,
                       const ConstTensor& bias_H, const ConstTensor& A_log_H);

void check_ssd_forward(Device device, const SsdForward& args);
void check_ssd_backward(Device device, const SsdBackward& args);
void check_ssd_adjoint(Device device, const Tensor& dinitial_BHKD, const Tensor& log_decay_BH,
                       const ConstTensor& q_BTHD, const ConstTensor& dy_BTHD, const ConstTensor& log_a_BTH,
                       int64_t chunk);
void check_ssd_decay(Device device, const Tensor& state_BHKD, const ConstTensor& log_a_BTH);
void check_segment_scan(Device device, const Tensor& out_KBHE, const ConstTensor& in_KBHE,
                        const ConstTensor& decay_KBH);

void check_gated_norm_forward(Device device, const Tensor& out_BTHD, const Tensor& rstd_BTH, const ConstTensor& y_BTHD,
                              const ConstTensor& z_BTHD, const ConstTensor& w_HD);
void check_gated_norm_backward(Device device, const Tensor& dy_BTHD, const Tensor& dz_BTHD, const Tensor& dw_HD,
                               const ConstTensor& dout_BTHD, const ConstTensor& y_BTHD, const ConstTensor& z_BTHD,
                               const ConstTensor& rstd_BTH, const ConstTensor& w_HD);

}  // namespace tmamba
