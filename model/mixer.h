// The mixer of one layer: one set of weights (Q = C, K = B, V = x), projections around the mixing of tokens
// (model/sequence_mixer.h), the gate and norm of SSM outputs (spec.md sections 2 and 3), and where the layer's
// transport says so the all-to-all between "my tokens, all heads" and "all tokens, my heads".
//
// A rank holds n tokens of each of B sequences (dist/layout.h). The first P of them are attention tokens, the other S
// SSM tokens. C model width, H heads and D head width of this tensor-parallel rank, X = 3 H D channels of q, k, v,
// N = B n rows.
#pragma once

#include <optional>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/parallel.h"
#include "model/parameters.h"
#include "model/sequence_mixer.h"

namespace tmamba {

// Views of one layer's mixer parameters, or of their gradients, in a flat buffer.
struct MixerParams {
  Tensor qkv_XC, conv_XW, conv_bias_X, z_CC, dt_HC, dt_bias_H, A_log_H, D_H, out_norm_HD, out_CC;

  static MixerParams of(const ParameterTable& table, const Tensor& flat, const ModelConfig& config, int64_t layer);
};

class Mixer {
 public:
  // Takes what forward keeps for backward from `saved`.
  Mixer(const ModelConfig& config, int layer, ModelRanks& ranks, int64_t local_heads, DType dtype, Arena& saved);

  // out = mixer(u), both [N, C]; u must live until backward. Under tensor parallelism `out` is this rank's summand.
  void forward(Ops& ops, Arena& scratch, const MixerParams& w, Tensor out_NC, ConstTensor u_NC);
  // du written over; gradients of the parameters added.
  void backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor du_NC,
                ConstTensor dout_NC, ConstTensor u_NC);

  // S at the TransPoint and after the last token, [B, H, D, D] key x value, of the heads that this rank scans; of the
  // last forward, for tests. Empty where this rank has no SSM tokens, or not those.
  ConstTensor state_at_transpoint() const { return tokens_mixer_->state_at_transpoint(); }
  ConstTensor final_state() const { return tokens_mixer_->final_state(); }

 private:
  bool has_ssm() const { return layer_.transpoint() < sequence_.layout().tokens(); }
  bool gates() const { return config_.z_gate && suffix_ > 0; }
  int64_t width() const { return heads_ * head_dim_; }
  // Local rows as heads.
  Tensor heads(const Tensor& rows_BnC, int64_t begin, int64_t count) const;
  void project_suffix(Ops& ops, ConstTensor u_NC, const Tensor& w_CC);

  // Head-parallel: what the all-to-all carries. Each with its column range of all heads.
  std::vector<HeadTensor> inputs_by_head(const Tensor& pre_BTX, const Tensor& raw_BTH, const Tensor& pre_BnX,
                                         const Tensor& raw_BnH) const;
  std::vector<HeadTensor> outputs_by_head(const Tensor& out_BTC, const Tensor& o_BnC, const Tensor& y_BSHD) const;
  // The parameters of the heads that this rank mixes: all of its own, or head-parallel a share of them.
  SequenceMixerParams params_by_head(Ops& ops, Arena& scratch, const MixerParams& w) const;
  SequenceMixerParams zero_grads_by_head(Ops& ops, Arena& scratch, const MixerParams& grad) const;
  void add_grads_by_head(Ops& ops, const MixerParams& grad, const SequenceMixerParams& part) const;

  const ModelConfig& config_;
  SequenceExchange& sequence_;
  LayerLayout layer_;
  bool head_parallel_;
  int64_t batch_, tokens_, heads_, head_dim_;  // tokens_: local
  int64_t prefix_ = 0, suffix_ = 0;            // local attention tokens, which come first, and local SSM tokens
  DType dtype_, acc_;

  Tensor mixed_BnC_;    // what `out` multiplies: attention outputs, then gated and normed SSM outputs
  Tensor by_head_BTC_;  // head-parallel: outputs of all tokens of this rank's heads
  Tensor z_BSC_, y_BSHD_, rstd_BSH_;
  std::optional<SequenceMixer> tokens_mixer_;
};

}  // namespace tmamba
