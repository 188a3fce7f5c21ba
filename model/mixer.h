// The mixer of one layer: one set of weights, causal attention before the TransPoint P, the SSM scan from P on, and the
// Memory Converter between them (spec.md sections 2 and 3).
//
// A rank holds n tokens of each of B sequences: its s segments back to back (dist/layout.h). The first P of them are
// attention tokens, the other S SSM tokens. C model width, H heads and D head width of this tensor-parallel rank, X = 3
// H D channels of q, k, v, W - 1 halo rows, N = B n rows.
#pragma once

#include <vector>

#include "dist/exchange.h"
#include "dist/layout.h"
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
  // Takes what forward keeps for backward from `saved`. `layer`: its TransPoint in the exchange's layout.
  Mixer(const ModelConfig& config, const LayerLayout& layer, SequenceExchange& sequence, int64_t batch,
        int64_t local_heads, DType dtype, Arena& saved);

  // out = mixer(u), both [N, C]; u must live until backward. Under tensor parallelism `out` is this rank's summand.
  void forward(Ops& ops, Arena& scratch, const MixerParams& w, Tensor out_NC, ConstTensor u_NC);
  // du written over; gradients of the parameters added.
  void backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor du_NC,
                ConstTensor dout_NC, ConstTensor u_NC);

  // S at the TransPoint and after the last token, [B, H, D, D] key x value; of the last forward, for tests. Empty where
  // this rank has no SSM tokens, or not those.
  ConstTensor state_at_transpoint() const { return state_BHDD_; }
  ConstTensor final_state() const { return final_state_BHDD_; }

 private:
  // The attention or SSM tokens of one local segment: `count` of them, in the sequence from `position`, in the local
  // arrays from `row`.
  struct Part {
    size_t segment;
    int64_t position, row, count;
  };

  bool has_ssm() const { return layer_.transpoint() < sequence_.layout().tokens(); }
  // One segment makes up the whole sequence: nothing comes from or goes to other segments.
  bool alone() const { return sequence_.layout().segments().size() == 1; }
  bool exact() const { return config_.converter == Converter::exact; }
  // q, k or v (0, 1, 2) of local rows [begin, begin + count) in a [B, n, X] tensor, as [B, count, H, D].
  Tensor part(const Tensor& qkv_BnX, int64_t which, int64_t begin, int64_t count) const;
  Tensor heads(const Tensor& rows_BnC, int64_t begin, int64_t count) const;
  Tensor all_keys(Arena& scratch) const;
  // [H, D, D] states seen as vectors of D * D elements, for the scan over segments.
  Tensor flat_states(const Tensor& states_sBHDD) const;

  void convolve(Ops& ops, Arena& scratch, const MixerParams& w);
  void attention_forward(Ops& ops, Arena& scratch);
  void summarize_segments(Ops& ops, Arena& scratch);
  void ssm_forward(Ops& ops, const MixerParams& w);
  void converter_forward(Ops& ops, const Part& prefix, Tensor state_BHDD);
  void project_suffix(Ops& ops, ConstTensor u_NC, const Tensor& w_CC);

  void attention_backward(Ops& ops, Arena& scratch, const Tensor& dqkv_BnX, const Tensor& dmixed_BnC);
  void ssm_backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, const Tensor& dqkv_BnX,
                    const Tensor& draw_BnH, const Tensor& dz_BSC, const Tensor& dmixed_BnC);
  void segment_outflows(Ops& ops, Arena& scratch, const Tensor& outflow_sBHDD, const Tensor& dy_BSHD);
  SsdBackward ssd_backward_args(const Part& part, const Tensor& dqkv_BnX, const Tensor& ddt_BnH,
                                const Tensor& dlog_a_BnH) const;
  void convolve_backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad,
                         const Tensor& dpre_BnX, const Tensor& dqkv_BnX);

  const ModelConfig& config_;
  LayerLayout layer_;
  SequenceExchange& sequence_;
  int64_t batch_, tokens_, heads_, head_dim_;  // tokens_: local
  DType dtype_, acc_;
  std::vector<Part> attention_, ssm_;
  int64_t prefix_ = 0, suffix_ = 0;  // local attention tokens, which come first, and local SSM tokens
  int64_t keys_ = 0;                 // keys the local queries see
  bool keys_are_local_ = true;

  Tensor pre_BnX_;     // before the convolution
  Tensor halo_sBWX_;   // the rows before each segment
  Tensor qkv_BnX_;     // after it; q of the prefix is rotated in place
  Tensor k_rot_BPHD_;  // rotated keys of the local prefix
  Tensor lse_BPH_;
  Tensor raw_BnH_;  // before softplus
  Tensor dt_BnH_, log_a_BnH_;
  Tensor decays_KBH_;    // log-decays of all segments of the sequence
  Tensor inflow_sBHDD_;  // the state before each local segment
  Tensor state_BHDD_, final_state_BHDD_;
  Tensor z_BSC_, y_BSHD_, rstd_BSH_;
  Tensor mixed_BnC_;  // what `out` multiplies: attention outputs, then gated and normed SSM outputs
};

}  // namespace tmamba
