// The mixer of one layer: one set of weights (Q = C, K = B, V = x), projections around the mixing of tokens
// (model/sequence_mixer.h), the gate and norm of SSM outputs (spec.md sections 2 and 3), and where the layer's
// transport says so the all-to-all between "my tokens, all heads" and "all tokens, my heads".
//
// A rank holds n tokens of each of B sequences (dist/sequence/layout.h). The first P of them are attention tokens, the
// other S SSM tokens. C model width, H heads and D head width of this tensor-parallel rank, X = 3 H D channels of q, k,
// v, N = B n rows.
#pragma once

#include <optional>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "model/allocation_plan.h"
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
  Mixer(const ModelConfig& config, int layer, ModelRanks& ranks, int64_t local_heads, DType dtype, Recompute level);
  // Gives its activations their memory, before anything else.
  void place(const AllocationPlan& place);

  // out = mixer(u), both [N, C]. Under tensor parallelism `out` is this rank's summand.
  void forward(Ops& ops, Arena& scratch, const MixerParams& w, Tensor out_NC, ConstTensor u_NC);
  // Before backward: what forward did not keep. Other ranks are asked again at Recompute::all where the layer is
  // head-parallel alone.
  void recompute(Ops& ops, Arena& scratch, const MixerParams& w, ConstTensor u_NC);
  // out of forward once more, from what it kept or recompute() made.
  void project_out(Ops& ops, const MixerParams& w, Tensor out_NC) const;
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
  // Attention outputs live among the mixed rows, unless those are computed again and hold more than them.
  bool keeps_o_apart() const { return level_ != Recompute::none && prefix_ > 0 && suffix_ > 0; }
  Tensor o_BPC() const { return keeps_o_apart() ? o_BPC_ : mixed_BnC_.slice(1, 0, prefix_); }
  // Local rows as heads.
  Tensor heads(const Tensor& rows_BnC, int64_t begin, int64_t count) const;

  Pending project(Ops& ops, Arena& scratch, const MixerParams& w, ConstTensor u_NC, bool again);
  void project_suffix(Ops& ops, ConstTensor u_NC, const Tensor& w_CC);
  void gate(Ops& ops, const Tensor& out_norm_HD);

  // Head-parallel: what the all-to-all carries. Each with its column range of all heads.
  std::vector<HeadTensor> inputs_by_head(const Tensor& pre_BTX, const Tensor& raw_BTH, const Tensor& pre_BnX,
                                         const Tensor& raw_BnH) const;
  std::vector<HeadTensor> outputs_by_head(const Tensor& o_heads, const Tensor& y_heads, const Tensor& o_BPC,
                                          const Tensor& y_BSHD) const;
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
  Recompute level_;

  Tensor mixed_BnC_;  // what `out` multiplies: attention outputs, then gated and normed SSM outputs
  Tensor o_BPC_;      // attention outputs, where they are kept apart
  Tensor z_BSC_, y_BSHD_, rstd_BSH_;
  Tensor o_heads_BPC_, y_heads_BSC_;  // head-parallel: outputs of all tokens of this rank's heads
  std::optional<SequenceMixer> tokens_mixer_;
};

}  // namespace tmamba
