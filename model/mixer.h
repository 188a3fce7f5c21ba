// The mixer of one layer (model/SPEC.md sections 2 and 3): projections (model/mixer_projections.h), the mixing of
// tokens (model/sequence_mixer.h), gate and norm of SSM outputs, and for head-parallel transport the all-to-all between
// "my tokens, all heads" and "all tokens, my heads".
//
// A rank holds n tokens of each of B sequences (dist/sequence/layout.h). The first P of them are attention tokens, the
// other S SSM tokens. C model width, H heads and D head width of this tensor-parallel rank, X = 3 H D channels of q, k,
// v, N = B n rows. A head-parallel layer mixes h of the H heads on each rank.
#pragma once

#include <optional>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "model/allocation_plan.h"
#include "model/config.h"
#include "model/mixer_projections.h"
#include "model/parallel.h"
#include "model/sequence_mixer.h"

namespace tmamba {

class Mixer {
 public:
  Mixer(const ModelConfig& config, int layer, ModelRanks& ranks, int64_t local_heads, DType dtype, Recompute level);
  // Assigns memory to the activations; called before everything else.
  void allocate(const AllocationPlan& plan);

  // out = mixer(u), both [N, C]. Under tensor parallelism `out` is this rank's summand.
  void forward(Ops& ops, Arena& scratch, const MixerParams& w, Tensor out_NC, ConstTensor u_NC);
  // Before backward: recomputes the activations that forward did not save. Exchanges are repeated only in head-parallel
  // layers at Recompute::all.
  void recompute(Ops& ops, Arena& scratch, const MixerParams& w, ConstTensor u_NC);
  // Repeats the last step of forward from its saved or recomputed activations.
  void project_out(Ops& ops, const MixerParams& w, Tensor out_NC) const;
  // Overwrites du; adds to the gradients of the parameters.
  void backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor du_NC,
                ConstTensor dout_NC, ConstTensor u_NC);

  // The states at the TransPoint and after the last token of the last forward, [B, H, D, D] key x value; for tests.
  // Empty where this rank does not compute them.
  ConstTensor state_at_transpoint() const { return sequence_mixer_->state_at_transpoint(); }
  ConstTensor final_state() const { return sequence_mixer_->final_state(); }

 private:
  bool has_ssm() const { return layer_.transpoint() < sequence_.layout().tokens(); }
  bool has_gate() const { return config_.z_gate && suffix_ > 0; }
  int64_t width() const { return heads_ * head_dim_; }
  // Attention outputs are rows of mixed_BnC_, unless those are recomputed and hold SSM rows too.
  bool separate_o() const { return level_ != Recompute::none && prefix_ > 0 && suffix_ > 0; }
  Tensor o_BPC() const { return separate_o() ? o_BPC_ : mixed_BnC_.slice(1, 0, prefix_); }
  // Local rows as heads.
  Tensor heads(const Tensor& rows_BnC, int64_t begin, int64_t count) const;

  Pending project_in(Ops& ops, Arena& scratch, const MixerParams& w, ConstTensor u_NC, bool repeated);
  void gate(Ops& ops, const MixerParams& w);
  // Gradients of what project_in() computes.
  struct InputGradients {
    Tensor dpre_BnX, draw_BnH, dz_BSC;
  };
  void project_in_backward(Ops& ops, const MixerParams& w, const MixerParams& grad, const InputGradients& d,
                           Pending arrival, Tensor du_NC, ConstTensor u_NC) const;

  // Head-parallel: the tensors of the all-to-all, each with its columns of all heads.
  std::vector<HeadTensor> inputs_by_head(const Tensor& pre_BTX, const Tensor& raw_BTH, const Tensor& pre_BnX,
                                         const Tensor& raw_BnH) const;
  std::vector<HeadTensor> outputs_by_head(const Tensor& o_heads, const Tensor& y_heads, const Tensor& o_BPC,
                                          const Tensor& y_BSHD) const;
  // The parameters of the heads that this rank mixes: all of its own, or a slice of them in a head-parallel layer.
  SequenceMixerParams params_by_head(Ops& ops, Arena& scratch, const MixerParams& w) const;
  SequenceMixerParams zero_grads_by_head(Ops& ops, Arena& scratch, const MixerParams& grad) const;
  void add_grads_by_head(Ops& ops, const MixerParams& grad, const SequenceMixerParams& local) const;

  const ModelConfig& config_;
  SequenceExchange& sequence_;
  LayerLayout layer_;
  bool head_parallel_;
  int64_t batch_, tokens_, heads_, head_dim_;  // tokens_: local
  int64_t prefix_ = 0, suffix_ = 0;            // local attention tokens, which come first, and local SSM tokens
  DType dtype_, acc_;
  Recompute level_;

  Tensor mixed_BnC_;  // the input of project_out: attention outputs, then gated and normed SSM outputs
  Tensor o_BPC_;      // attention outputs where separate_o()
  Tensor z_BSC_, y_BSHD_, rstd_BSH_;
  Tensor o_heads_BPC_, y_heads_BSC_;  // head-parallel: outputs of all tokens of this rank's heads
  std::optional<SequenceMixer> sequence_mixer_;
};

}  // namespace tmamba
