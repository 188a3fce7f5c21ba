// The mixing of the tokens of one layer: the causal convolution, attention before the TransPoint P, the SSM scan from P
// on, and the Memory Converter between them (model/SPEC.md sections 2 and 3). The weight matrices are the Mixer's.
//
// A rank holds n tokens of each of B sequences: its s segments, one after the other (dist/sequence/layout.h). The first
// P of them are attention tokens, the other S SSM tokens. H heads and D head width of this rank, X = 3 H D channels of
// q, k, v, W - 1 halo rows.
//
// An exchange with the other ranks of the sequence is started as soon as its inputs exist and finished where its
// outputs are needed; all ranks start exchanges in the order of the plan (dist/planner/plan.h).
#pragma once

#include <vector>

#include "dist/sequence/exchange.h"
#include "dist/sequence/layout.h"
#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "model/allocation_plan.h"
#include "model/config.h"

namespace tmamba {

// Views of the parameters of this rank's heads, or of their gradients.
struct SequenceMixerParams {
  Tensor conv_XW, conv_bias_X, dt_bias_H, A_log_H, D_H;
};

// Columns of a [B, n, X] tensor.
enum class QkvChannel : uint8_t { q, k, v };
// q, k or v of rows [begin, begin + count), as [B, count, H, D].
Tensor qkv_heads(const Tensor& qkv_BnX, QkvChannel channel, int64_t begin, int64_t count, int64_t heads);

// dt and log_a [acc] from the raw step sizes, all [B, n, H].
void step_sizes(Ops& ops, const SequenceMixerParams& w, const Tensor& dt_BnH, const Tensor& log_a_BnH,
                const Tensor& raw_BnH);

double attention_scale(int64_t head_dim);

class SequenceMixer {
 public:
  SequenceMixer(const ModelConfig& config, const LayerLayout& layer, Transport transport, SequenceExchange& sequence,
                int64_t batch, int64_t heads, DType dtype, Recompute level);
  // Assigns memory to the activations; called before everything else. The caller owns the outputs: o_BPHD (attention),
  // which must live until backward, and y_BSHD (SSM).
  void allocate(const AllocationPlan& plan);
  void set_outputs(const Tensor& o_BPHD, const Tensor& y_BSHD) { o_BPHD_ = o_BPHD, y_BSHD_ = y_BSHD; }

  // What forward reads and the caller fills: q, k, v before the convolution, and the raw step sizes (empty where the
  // layer has no SSM tokens).
  const Tensor& pre_BnX() const { return pre_BnX_; }
  const Tensor& raw_BnH() const { return raw_BnH_; }

  // Starts the exchange that needs only pre_BnX. The caller computes raw_BnH and the rest, then calls forward.
  Pending begin_forward(Arena& scratch);
  void forward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, Pending halo);
  // Before backward: recomputes the activations that forward did not save from those it did, without an exchange. At
  // Recompute::all the caller fills pre_BnX and raw_BnH again before this, and the SSM outputs are recomputed too.
  void recompute(Ops& ops, const SequenceMixerParams& w);

  // Keys and values that the queries of this rank attend to, and their exchange.
  struct Keys {
    Tensor k_BSHD, v_BSHD;
    Pending arrival;
  };
  // Starts the exchange of what backward needs from other ranks' forward.
  Keys begin_backward(Arena& scratch);
  // Gradients of the inputs, which backward overwrites, and of the outputs, which it reads.
  struct Gradients {
    Tensor dpre_BnX, draw_BnH;
    ConstTensor do_BPHD, dy_BSHD;
  };
  // Adds to the gradients of the parameters. dpre_BnX is complete when the returned exchange is finished; the caller
  // rewinds `scratch` after that.
  Pending backward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, const SequenceMixerParams& grad,
                   const Gradients& gradients, Keys keys);

  // The states at the TransPoint and after the last token of the last forward, [B, H, D, D] key x value; for tests.
  // Empty where this rank does not compute them.
  ConstTensor state_at_transpoint() const { return state_BHDD_; }
  ConstTensor final_state() const { return final_state_BHDD_; }

 private:
  // The attention tokens, or the SSM tokens, of one local segment: `count` tokens from `position` in the sequence and
  // from `row` in the local arrays.
  struct SegmentTokens {
    size_t segment;
    int64_t position, row, count;
  };
  // Gradients of what the scan reads.
  struct ScanGradients {
    Tensor dqkv_BnX, ddt_BnH, dlog_a_BnH;
    Tensor dstate_BHDD;    // of the state at the TransPoint
    Tensor outflow_sBHDD;  // of the state after each local segment
  };

  bool has_ssm() const { return layer_.transpoint() < sequence_.layout().tokens(); }
  // The sequence is one segment, so nothing is exchanged between segments.
  bool single_segment() const { return sequence_.layout().segments().size() == 1; }
  bool exact() const { return config_.converter == Converter::exact; }
  bool at_transpoint(const SegmentTokens& tokens) const { return tokens.position == layer_.transpoint(); }
  bool at_sequence_end(const SegmentTokens& tokens) const {
    return tokens.position + tokens.count == sequence_.layout().tokens();
  }
  // q, k or v of some tokens in a [B, n, X] tensor, as [B, count, H, D].
  Tensor heads_of(const Tensor& qkv_BnX, QkvChannel channel, const SegmentTokens& tokens) const {
    return qkv_heads(qkv_BnX, channel, tokens.row, tokens.count, heads_);
  }
  // The same of all local attention tokens.
  Tensor prefix_heads(const Tensor& qkv_BnX, QkvChannel channel) const {
    return qkv_heads(qkv_BnX, channel, 0, prefix_, heads_);
  }
  Tensor all_keys(Arena& scratch) const;
  // [H, D, D] states as vectors of D * D elements, for the scan over segments.
  Tensor flat_states(const Tensor& states_sBHDD) const;
  // The slice of one local segment; empty where the sequence is one segment.
  Tensor of_segment(const Tensor& x, size_t segment) const;

  void compute_step_sizes(Ops& ops, const SequenceMixerParams& w);
  void convolve(Ops& ops, const SequenceMixerParams& w);
  // Whether rotated keys have a tensor of their own: the converter of a layer with SSM tokens needs the keys before
  // rotation too. Else they are rotated in place.
  bool separate_rotated_keys() const { return has_ssm(); }
  Tensor rotated_keys(const Tensor& separate_BPHD, const Tensor& qkv_BnX) const {
    return separate_rotated_keys() ? separate_BPHD : prefix_heads(qkv_BnX, QkvChannel::k);
  }
  // The separate rotated keys of one segment; empty where there are none.
  Tensor rotated_keys_of_segment(const Tensor& separate_BPHD, const Segment& segment) const;
  // The inputs of the convolution, forward or backward, of the i-th local segment; the caller sets the outputs.
  template <class Args>
  Args convolution_args(const SequenceMixerParams& w, size_t i) const {
    const Segment& segment = sequence_.segments()[i];
    Args args;
    args.x_BTC = pre_BnX_.slice(1, segment.local_begin, segment.size());
    args.halo_BWC = of_segment(halo_sBWX_, i);
    args.w_CW = w.conv_XW, args.b_C = w.conv_bias_X;
    args.heads = heads_, args.prefix = layer_.attention_part(segment).size(), args.position = segment.begin;
    args.theta = config_.rope_theta;
    return args;
  }
  // The inputs of a scan, forward or backward, without queries, of `count` local tokens from `row` on.
  template <class Args>
  Args scan_args(int64_t row, int64_t count) const {
    Args args;
    args.k_BTHD = qkv_heads(qkv_BnX_, QkvChannel::k, row, count, heads_);
    args.v_BTHD = qkv_heads(qkv_BnX_, QkvChannel::v, row, count, heads_);
    args.dt_BTH = dt_BnH_.slice(1, row, count), args.log_a_BTH = log_a_BnH_.slice(1, row, count);
    args.chunk = config_.chunk;
    return args;
  }
  Keys gather_keys(Arena& scratch);
  Pending summarize_segments(Ops& ops, Arena& scratch);
  void attention_forward(Ops& ops, const Keys& keys);
  void enter_ssm(Ops& ops);
  void converter_forward(Ops& ops, const SegmentTokens& prefix);
  void ssm_forward(Ops& ops, const SequenceMixerParams& w);

  ScanGradients scan_gradients(Arena& scratch, const Tensor& dqkv_BnX) const;
  Pending segment_outflows(Ops& ops, Arena& scratch, const Tensor& outflow_sBHDD, const ConstTensor& dy_BSHD);
  void attention_backward(Ops& ops, const Tensor& dqkv_BnX, const ConstTensor& do_BPHD, const Keys& keys,
                          const Tensor& dk_BSHD, const Tensor& dv_BSHD);
  void ssm_backward(Ops& ops, const SequenceMixerParams& w, const SequenceMixerParams& grad, const ScanGradients& d,
                    const ConstTensor& dy_BSHD);
  void converter_backward(Ops& ops, const ScanGradients& d);
  SsdBackward ssd_backward_args(const SegmentTokens& tokens, const ScanGradients& d) const;
  Pending convolve_backward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, const SequenceMixerParams& grad,
                            const Tensor& dpre_BnX, const Tensor& dqkv_BnX, const Tensor& dk_rot_BPHD);

  const ModelConfig& config_;
  LayerLayout layer_;
  Transport transport_;
  SequenceExchange& sequence_;
  int64_t batch_, tokens_, heads_, head_dim_;  // tokens_: local
  DType dtype_, acc_;
  Recompute level_;
  std::vector<SegmentTokens> attention_, ssm_;
  int64_t prefix_ = 0, suffix_ = 0;  // local attention tokens, which come first, and local SSM tokens
  int64_t keys_ = 0;                 // keys that the local queries attend to

  Tensor o_BPHD_, y_BSHD_;
  Tensor pre_BnX_;
  Tensor halo_sBWX_;   // the rows before each segment
  Tensor qkv_BnX_;     // after the convolution; q of the prefix is rotated, and k without separate_rotated_keys()
  Tensor k_rot_BPHD_;  // empty without separate_rotated_keys()
  Tensor lse_BPH_;
  Tensor raw_BnH_;  // step sizes before softplus
  Tensor dt_BnH_, log_a_BnH_;
  Tensor decays_KBH_;    // log-decays of all segments of the sequence
  Tensor inflow_sBHDD_;  // the state before each local segment
  Tensor state_BHDD_, final_state_BHDD_;
};

}  // namespace tmamba
