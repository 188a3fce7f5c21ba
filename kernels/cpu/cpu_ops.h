// class CpuOps: every op on the host, in float32 and float64. It is the specification that other backends are tested
// against. One file per group of ops; matrix products go through gemm.h, loops over threads through parallel.h.
#pragma once

#include <vector>

#include "kernels/ops/ops.h"

namespace tmamba {

// cos and sin of position * theta^(-2i/D) for any position, by the angle sums of two short tables:
// position = kFine * coarse + fine. Float64, so that the result does not depend on how far a table reaches.
class RopeTable {
 public:
  static constexpr int64_t kFine = 256;
  // Prepares positions 0 .. positions - 1 for `pairs` = D/2 frequencies.
  void prepare(int64_t positions, int64_t pairs, double theta);
  // cos_sin: `pairs` cosines, then `pairs` sines.
  template <class T>
  void angles(T* cos_sin, int64_t position) const;

 private:
  double theta_ = 0;
  int64_t pairs_ = 0;
  std::vector<double> frequency_;
  std::vector<double> fine_, coarse_;  // [position][cosines, sines]
};

class CpuOps final : public Ops {
 public:
  CpuOps();
  Device device() const override { return Device::cpu; }
  void synchronize() override {}

  void fill(Tensor x, double value) override;
  void copy(Tensor y, ConstTensor x) override;
  void add(Tensor y, ConstTensor x) override;
  void scale(Tensor x, double factor) override;
  void sum_squares(Tensor out_1, std::span<const ConstTensor> tensors) override;

  void embedding_forward(Tensor y_NC, ConstTensor table_VC, ConstTensor tokens_N, int64_t vocab_begin) override;
  void embedding_backward(Tensor dtable_VC, ConstTensor dy_NC, ConstTensor tokens_N, int64_t vocab_begin) override;

  void rmsnorm_forward(Tensor y_NC, Tensor rstd_N, Tensor sum_NC, ConstTensor x_NC, ConstTensor delta_NC,
                       ConstTensor w_C, double eps) override;
  void rmsnorm_backward(Tensor dx_NC, Tensor dw_C, ConstTensor dy_NC, ConstTensor x_NC, ConstTensor rstd_N,
                        ConstTensor w_C, ConstTensor dresidual_NC) override;

  void linear_forward(Tensor y_NO, ConstTensor x_NI, ConstTensor w_OI) override;
  void linear_backward_input(Tensor dx_NI, ConstTensor dy_NO, ConstTensor w_OI, bool accumulate) override;
  void linear_backward_weight(Tensor dw_OI, ConstTensor dy_NO, ConstTensor x_NI) override;

  void conv_silu_forward(Tensor y_BTC, ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW,
                         ConstTensor b_C) override;
  void conv_silu_backward(Tensor dx_BTC, Tensor dhalo_BWC, Tensor dw_CW, Tensor db_C, ConstTensor dy_BTC,
                          ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW, ConstTensor b_C) override;
  void conv_silu_rope_forward(const ConvRopeForward& args) override;
  void conv_silu_rope_backward(const ConvRopeBackward& args) override;

  void rope_forward(Tensor y_BTHD, ConstTensor x_BTHD, int64_t position, double theta) override;
  void rope_backward(Tensor dx_BTHD, ConstTensor dy_BTHD, int64_t position, double theta) override;

  void attention_forward(const AttentionForward& args) override;
  void attention_backward(const AttentionBackward& args) override;

  void dt_forward(Tensor dt_NH, Tensor log_a_NH, ConstTensor raw_NH, ConstTensor bias_H, ConstTensor A_log_H) override;
  void dt_backward(Tensor draw_NH, Tensor dbias_H, Tensor dA_log_H, ConstTensor ddt_NH, ConstTensor dlog_a_NH,
                   ConstTensor raw_NH, ConstTensor bias_H, ConstTensor A_log_H) override;

  void ssd_forward(const SsdForward& args) override;
  void ssd_backward(const SsdBackward& args) override;
  void ssd_adjoint(Tensor dinitial_BHKD, Tensor log_decay_BH, ConstTensor q_BTHD, ConstTensor dy_BTHD,
                   ConstTensor log_a_BTH, int64_t chunk) override;

  void ssd_decay(Tensor state_BHKD, ConstTensor log_a_BTH) override;
  void segment_scan(Tensor out_KBHE, ConstTensor in_KBHE, ConstTensor decay_KBH, bool reverse) override;
  void gated_norm_forward(Tensor out_BTHD, Tensor rstd_BTH, ConstTensor y_BTHD, ConstTensor z_BTHD, ConstTensor w_HD,
                          double eps) override;
  void gated_norm_backward(Tensor dy_BTHD, Tensor dz_BTHD, Tensor dw_HD, ConstTensor dout_BTHD, ConstTensor y_BTHD,
                           ConstTensor z_BTHD, ConstTensor rstd_BTH, ConstTensor w_HD) override;

  void swiglu_forward(Tensor h_NF, ConstTensor gate_up_N2F) override;
  void swiglu_backward(Tensor dgate_up_N2F, ConstTensor dh_NF, ConstTensor gate_up_N2F) override;

  void cross_entropy_stats(Tensor max_N, Tensor sum_exp_N, Tensor target_N, ConstTensor logits_NV,
                           ConstTensor targets_N, int64_t vocab_begin) override;
  void cross_entropy_rescale(Tensor sum_exp_N, ConstTensor max_N, ConstTensor global_max_N) override;
  void cross_entropy_loss(Tensor loss_sum_1, Tensor count_1, Tensor loss_N, ConstTensor max_N, ConstTensor sum_exp_N,
                          ConstTensor target_N, ConstTensor targets_N) override;
  void cross_entropy_gradient(Tensor logits_NV, ConstTensor max_N, ConstTensor sum_exp_N, ConstTensor targets_N,
                              int64_t vocab_begin, double scale) override;

  void check_step(Tensor step_S, ConstTensor sums_S, ConstTensor limits_S) override;
  void adamw(std::span<const AdamwTensor> tensors, const AdamwRule& rule, ConstTensor step_S) override;

 private:
  RopeTable rope_table_;
};

}  // namespace tmamba
