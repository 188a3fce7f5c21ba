// The mixer of one layer: one set of weights, causal attention before the TransPoint P, the SSM scan from P on, and the
// Memory Converter between them (spec.md sections 2 and 3).
//
// B sequences, T tokens, P attention tokens, S = T - P SSM tokens, C model width, H heads, D head width, X = 3 H D
// channels of q, k, v, N = B T rows.
#pragma once

#include "kernels/base/buffer.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/parameters.h"

namespace tmamba {

// Views of one layer's mixer parameters, or of their gradients, in a flat buffer.
struct MixerParams {
  Tensor qkv_XC, conv_XW, conv_bias_X, z_CC, dt_HC, dt_bias_H, A_log_H, D_H, out_norm_HD, out_CC;

  static MixerParams of(const ParameterTable& table, const Tensor& flat, const ModelConfig& config, int64_t layer);
};

class Mixer {
 public:
  // Takes what forward keeps for backward from `saved`; only where `train`, otherwise one layer's worth is shared.
  Mixer(const ModelConfig& config, int64_t transpoint, int64_t batch, int64_t tokens, int64_t local_heads, DType dtype,
        Arena& saved);

  // out = mixer(u), both [N, C]; u must live until backward.
  void forward(Ops& ops, Arena& scratch, const MixerParams& w, Tensor out_NC, ConstTensor u_NC);
  // du written over; gradients of the parameters added.
  void backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor du_NC,
                ConstTensor dout_NC, ConstTensor u_NC);

  // S at the TransPoint and after the last token, [B, H, D, D] key x value; of the last forward, for tests. Empty where
  // the layer has no SSM part.
  ConstTensor state_at_transpoint() const { return state_BHDD_; }
  ConstTensor final_state() const { return final_state_BHDD_; }

 private:
  bool has_ssm() const { return transpoint_ < tokens_; }
  bool converts() const { return has_ssm() && transpoint_ > 0 && config_.converter == Converter::exact; }
  // q, k or v (0, 1, 2) of tokens [begin, begin + count) in a [B, T, X] tensor, as [B, count, H, D].
  template <class View>
  View part(const View& qkv_BTX, int64_t which, int64_t begin, int64_t count) const;
  void attention_forward(Ops& ops);
  void ssm_forward(Ops& ops, const MixerParams& w);
  void attention_backward(Ops& ops, Arena& scratch, Tensor dqkv_BTX, ConstTensor dmixed_BTC);
  void ssm_backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor dqkv_BTX,
                    Tensor draw_BTH, Tensor dz_BSC, ConstTensor dmixed_BTC);
  void project_suffix(Ops& ops, Tensor z_BSC, ConstTensor u_NC, const Tensor& w_CC) const;

  const ModelConfig& config_;
  int64_t transpoint_, batch_, tokens_, heads_, head_dim_;
  DType dtype_;
  Tensor pre_BTX_;       // before the convolution
  Tensor qkv_BTX_;       // after it; q of the prefix is rotated in place
  Tensor k_rot_BPHD_;    // rotated keys of the prefix
  Tensor lse_BPH_;
  Tensor raw_BTH_;       // before softplus
  Tensor dt_BTH_, log_a_BTH_;
  Tensor state_BHDD_, final_state_BHDD_;
  Tensor z_BSC_, y_BSHD_, rstd_BSH_;
  Tensor mixed_BTC_;     // what `out` multiplies: attention outputs, then gated and normed SSM outputs
};

}  // namespace tmamba
