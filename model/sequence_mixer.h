// What mixes the tokens of one layer: the causal convolution, attention before the TransPoint P, the SSM scan from P
// on, and the Memory Converter between them (spec.md sections 2 and 3). No weight matrices: those are the Mixer's.
//
// A rank holds n tokens of each of B sequences: its s segments back to back (dist/sequence/layout.h). The first P of
// them are attention tokens, the other S SSM tokens. H heads and D head width of this rank, X = 3 H D channels of q, k,
// v, W - 1 halo rows.
//
// Exchanges with the other ranks of the sequence are started as soon as their inputs exist and finished where their
// outputs are needed; the order in which they are started is the plan's (dist/planner/plan.h).
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

class SequenceMixer {
 public:
  SequenceMixer(const ModelConfig& config, const LayerLayout& layer, Transport transport, SequenceExchange& sequence,
                int64_t batch, int64_t heads, DType dtype, Recompute level);
  // Gives its activations their memory, before anything else. Where its outputs go is the caller's: o_BPHD
  // (attention), which must live until backward, and y_BSHD (SSM).
  void place(const AllocationPlan& place);
  void set_outputs(const Tensor& o_BPHD, const Tensor& y_BSHD) { o_BPHD_ = o_BPHD, y_BSHD_ = y_BSHD; }

  // What forward reads, for the caller to fill: q, k, v before the convolution, and the raw step sizes where the layer
  // has SSM tokens (else empty).
  const Tensor& pre_BnX() const { return pre_BnX_; }
  const Tensor& raw_BnH() const { return raw_BnH_; }

  // Starts what needs pre_BnX alone. The caller computes raw_BnH and what else it has, then calls forward.
  Pending begin_forward(Arena& scratch);
  void forward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, Pending halo);
  // Before backward: what forward did not keep, from what it did; no other rank is asked. At Recompute::all the caller
  // fills pre_BnX and raw_BnH again before, and finds the SSM outputs again behind.
  void recompute(Ops& ops, const SequenceMixerParams& w);

  // Keys and values that the queries of this rank see, and their exchange.
  struct Keys {
    Tensor k_BSHD, v_BSHD;
    Pending arrival;
  };
  // Starts what backward needs of other ranks from forward.
  Keys begin_backward(Arena& scratch);
  // dpre_BnX and draw_BnH written over; gradients of the parameters added. dpre_BnX is complete when the exchange that
  // comes back is finished. `scratch` is left for the caller to rewind after that.
  Pending backward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, const SequenceMixerParams& grad,
                   Tensor dpre_BnX, Tensor draw_BnH, ConstTensor do_BPHD, ConstTensor dy_BSHD, Keys keys);

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
  Tensor all_keys(Arena& scratch) const;
  // [H, D, D] states seen as vectors of D * D elements, for the scan over segments.
  Tensor flat_states(const Tensor& states_sBHDD) const;
  // Of one local segment; empty where there is but one.
  Tensor of_segment(const Tensor& x, size_t segment) const;

  void step_sizes(Ops& ops, const SequenceMixerParams& w);
  void convolve(Ops& ops, const SequenceMixerParams& w);
  // Rotated keys of the local prefix. Where there is an SSM half its converter needs the plain ones too; else they are
  // rotated in place.
  bool keys_apart() const { return has_ssm(); }
  Tensor rotated_keys(const Tensor& apart_BPHD, const Tensor& qkv_BnX) const {
    return keys_apart() ? apart_BPHD : part(qkv_BnX, 1, 0, prefix_);
  }
  // Those of one segment that lie apart; empty where there are none.
  Tensor keys_of_segment(const Tensor& apart_BPHD, const Segment& segment) const;
  // What the convolution, forward or backward, reads of the i-th local segment; its outputs are left to the caller.
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
  // What a scan, forward or backward, reads of `count` local tokens from `row` on, queries apart.
  template <class Args>
  Args scan_args(int64_t row, int64_t count) const {
    Args args;
    args.k_BTHD = part(qkv_BnX_, 1, row, count), args.v_BTHD = part(qkv_BnX_, 2, row, count);
    args.dt_BTH = dt_BnH_.slice(1, row, count), args.log_a_BTH = log_a_BnH_.slice(1, row, count);
    args.chunk = config_.chunk;
    return args;
  }
  Keys gather_keys(Arena& scratch);
  Pending summarize_segments(Ops& ops, Arena& scratch);
  void attention_forward(Ops& ops, const Keys& keys);
  void enter_ssm(Ops& ops);
  void converter_forward(Ops& ops, const Part& prefix);
  void ssm_forward(Ops& ops, const SequenceMixerParams& w);

  Pending segment_outflows(Ops& ops, Arena& scratch, const Tensor& outflow_sBHDD, const ConstTensor& dy_BSHD);
  void attention_backward(Ops& ops, const Tensor& dqkv_BnX, const ConstTensor& do_BPHD, const Keys& keys,
                          const Tensor& dk_BSHD, const Tensor& dv_BSHD);
  SsdBackward ssd_backward_args(const Part& part, const Tensor& dqkv_BnX, const Tensor& ddt_BnH,
                                const Tensor& dlog_a_BnH) const;
  Pending convolve_backward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, const SequenceMixerParams& grad,
                            const Tensor& dpre_BnX, const Tensor& dqkv_BnX, const Tensor& dk_rot_BPHD);

  const ModelConfig& config_;
  LayerLayout layer_;
  Transport transport_;
  SequenceExchange& sequence_;
  int64_t batch_, tokens_, heads_, head_dim_;  // tokens_: local
  DType dtype_, acc_;
  Recompute level_;
  std::vector<Part> attention_, ssm_;
  int64_t prefix_ = 0, suffix_ = 0;  // local attention tokens, which come first, and local SSM tokens
  int64_t keys_ = 0;                 // keys the local queries see

  Tensor o_BPHD_, y_BSHD_;
  Tensor pre_BnX_;
  Tensor halo_sBWX_;   // the rows before each segment
  Tensor qkv_BnX_;     // after the convolution; q of the prefix is rotated, and k where keys_apart() is not
  Tensor k_rot_BPHD_;  // where keys_apart(), else empty
  Tensor lse_BPH_;
  Tensor raw_BnH_;  // before softplus
  Tensor dt_BnH_, log_a_BnH_;
  Tensor decays_KBH_;    // log-decays of all segments of the sequence
  Tensor inflow_sBHDD_;  // the state before each local segment
  Tensor state_BHDD_, final_state_BHDD_;
};

}  // namespace tmamba
