#include <utility>

#include "model/sequence_mixer.h"

namespace tmamba {

SequenceMixer::Keys SequenceMixer::begin_backward(Arena& scratch) { return gather_keys(scratch); }

Pending SequenceMixer::backward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, const SequenceMixerParams& grad,
                                const Gradients& gradients, Keys keys) {
  const int64_t B = batch_, n = tokens_, H = heads_, D = head_dim_, N = B * n;
  const Tensor dqkv_BnX = scratch.take({B, n, 3 * H * D}, dtype_);
  const Tensor dk_separate_BPHD = separate_rotated_keys() ? scratch.take({B, prefix_, H, D}, dtype_) : Tensor();
  const Tensor dk_rot_BPHD = rotated_keys(dk_separate_BPHD, dqkv_BnX);
  const Tensor local_dv = prefix_heads(dqkv_BnX, QkvChannel::v);
  const ScanGradients d = scan_gradients(scratch, dqkv_BnX);
  Pending outflow;
  if (has_ssm() && !single_segment()) outflow = segment_outflows(ops, scratch, d.outflow_sBHDD, gradients.dy_BSHD);

  Tensor dk = dk_rot_BPHD, dv = local_dv;
  if (layer_.exchanges_keys()) dk = all_keys(scratch), dv = all_keys(scratch);
  if (prefix_ > 0) ops.fill({dk, 0}), ops.fill({dv, 0});
  keys.arrival.finish();
  attention_backward(ops, dqkv_BnX, gradients.do_BPHD, keys, dk, dv);
  outflow.issue_last();
  Pending key_gradients;
  if (layer_.exchanges_keys()) {
    key_gradients = sequence_.return_key_gradients(scratch, layer_, transport_.keys, dk_rot_BPHD, local_dv, dk, dv);
  }

  outflow.finish();
  ssm_backward(ops, w, grad, d, gradients.dy_BSHD);
  key_gradients.finish();
  if (has_ssm()) converter_backward(ops, d);
  Pending halo = convolve_backward(ops, scratch, w, grad, gradients.dpre_BnX, dqkv_BnX, dk_separate_BPHD);
  if (has_ssm()) {
    ops.dt_backward({.draw_NH = gradients.draw_BnH.view({N, H}),
                     .dbias_H = grad.dt_bias_H,
                     .dA_log_H = grad.A_log_H,
                     .ddt_NH = d.ddt_BnH.view({N, H}),
                     .dlog_a_NH = d.dlog_a_BnH.view({N, H}),
                     .raw_NH = raw_BnH_.view({N, H}),
                     .bias_H = w.dt_bias_H,
                     .A_log_H = w.A_log_H});
  }
  return halo;
}

SequenceMixer::ScanGradients SequenceMixer::scan_gradients(Arena& scratch, const Tensor& dqkv_BnX) const {
  const int64_t B = batch_, n = tokens_, H = heads_, D = head_dim_;
  ScanGradients d{.dqkv_BnX = dqkv_BnX, .ddt_BnH = {}, .dlog_a_BnH = {}, .dstate_BHDD = {}, .outflow_sBHDD = {}};
  if (!has_ssm()) return d;
  d.ddt_BnH = scratch.take({B, n, H}, acc_), d.dlog_a_BnH = scratch.take({B, n, H}, acc_);
  d.dstate_BHDD = scratch.take({B, H, D, D}, acc_);
  if (!single_segment()) d.outflow_sBHDD = scratch.take({std::ssize(sequence_.segments()), B, H, D, D}, acc_);
  return d;
}

void SequenceMixer::ssm_backward(Ops& ops, const SequenceMixerParams& w, const SequenceMixerParams& grad,
                                 const ScanGradients& d, const ConstTensor& dy_BSHD) {
  for (const SegmentTokens& p : ssm_) {
    SsdBackward args = ssd_backward_args(p, d);
    args.dq_BTHD = heads_of(d.dqkv_BnX, QkvChannel::q, p), args.q_BTHD = heads_of(qkv_BnX_, QkvChannel::q, p);
    args.dy_BTHD = dy_BSHD.slice(1, p.row - prefix_, p.count), args.D_H = w.D_H, args.dD_H = grad.D_H;
    args.initial_state_BHKD = at_transpoint(p) ? state_BHDD_ : of_segment(inflow_sBHDD_, p.segment);
    args.dfinal_state_BHKD = of_segment(d.outflow_sBHDD, p.segment);
    if (at_transpoint(p)) args.dinitial_state_BHKD = d.dstate_BHDD;
    ops.ssd_backward(args);
  }
}

// Gradients of the prefix that the converter delivers: those of its keys before rotation, and those of its values,
// which are added to the gradients from attention.
void SequenceMixer::converter_backward(Ops& ops, const ScanGradients& d) {
  for (const SegmentTokens& p : attention_) {
    if (!exact()) {
      ops.fill({heads_of(d.dqkv_BnX, QkvChannel::k, p), 0});
      ops.fill({d.ddt_BnH.slice(1, p.row, p.count), 0}), ops.fill({d.dlog_a_BnH.slice(1, p.row, p.count), 0});
      continue;
    }
    const bool splits = !ssm_.empty() && ssm_.front().segment == p.segment;
    SsdBackward args = ssd_backward_args(p, d);
    args.dfinal_state_BHKD = splits ? d.dstate_BHDD : of_segment(d.outflow_sBHDD, p.segment);
    args.initial_state_BHKD = of_segment(inflow_sBHDD_, p.segment);
    args.accumulate_v = true;
    ops.ssd_backward(args);
  }
}

void SequenceMixer::attention_backward(Ops& ops, const Tensor& dqkv_BnX, const ConstTensor& do_BPHD, const Keys& keys,
                                       const Tensor& dk_BSHD, const Tensor& dv_BSHD) {
  for (const SegmentTokens& p : attention_) {
    const int64_t seen = p.position + p.count;
    ops.attention_backward({.dq_BTHD = heads_of(dqkv_BnX, QkvChannel::q, p),
                            .dk_BSHD = dk_BSHD.slice(1, 0, seen),
                            .dv_BSHD = dv_BSHD.slice(1, 0, seen),
                            .do_BTHD = do_BPHD.slice(1, p.row, p.count),
                            .o_BTHD = o_BPHD_.slice(1, p.row, p.count),
                            .lse_BTH = lse_BPH_.slice(1, p.row, p.count),
                            .q_BTHD = heads_of(qkv_BnX_, QkvChannel::q, p),
                            .k_BSHD = keys.k_BSHD.slice(1, 0, seen),
                            .v_BSHD = keys.v_BSHD.slice(1, 0, seen),
                            .q_begin = p.position,
                            .scale = attention_scale(head_dim_)});
  }
}

// Starts the scan that returns the gradient of the state after each local segment, which later segments read.
Pending SequenceMixer::segment_outflows(Ops& ops, Arena& scratch, const Tensor& outflow_sBHDD,
                                        const ConstTensor& dy_BSHD) {
  const Tensor adjoint_sBHDD = scratch.take({outflow_sBHDD.size(0), batch_, heads_, head_dim_, head_dim_}, acc_);
  ops.fill({adjoint_sBHDD, 0});
  for (const SegmentTokens& p : ssm_) {
    // SSM tokens after a TransPoint inside their segment deliver to the state at the TransPoint. The segment's adjoint
    // is that gradient, decayed over the segment's prefix.
    const bool splits = !attention_.empty() && attention_.back().segment == p.segment;
    const Tensor adjoint = of_segment(adjoint_sBHDD, p.segment);
    if (splits && !exact()) continue;
    ops.ssd_adjoint({.dinitial_BHKD = adjoint,
                     .q_BTHD = heads_of(qkv_BnX_, QkvChannel::q, p),
                     .dy_BTHD = dy_BSHD.slice(1, p.row - prefix_, p.count),
                     .log_a_BTH = log_a_BnH_.slice(1, p.row, p.count),
                     .chunk = config_.chunk});
    if (splits)
      ops.ssd_decay(
          {.state_BHKD = adjoint, .log_a_BTH = log_a_BnH_.slice(1, attention_.back().row, attention_.back().count)});
  }
  return sequence_.scan_adjoints(scratch, layer_, transport_.state, flat_states(outflow_sBHDD),
                                 flat_states(adjoint_sBHDD), decays_KBH_);
}

// The arguments that the backward scans of SSM tokens and of prefix tokens have in common.
SsdBackward SequenceMixer::ssd_backward_args(const SegmentTokens& p, const ScanGradients& d) const {
  SsdBackward args = scan_args<SsdBackward>(p.row, p.count);
  args.dk_BTHD = heads_of(d.dqkv_BnX, QkvChannel::k, p), args.dv_BTHD = heads_of(d.dqkv_BnX, QkvChannel::v, p);
  args.ddt_BTH = d.ddt_BnH.slice(1, p.row, p.count), args.dlog_a_BTH = d.dlog_a_BnH.slice(1, p.row, p.count);
  return args;
}

Pending SequenceMixer::convolve_backward(Ops& ops, Arena& scratch, const SequenceMixerParams& w,
                                         const SequenceMixerParams& grad, const Tensor& dpre_BnX,
                                         const Tensor& dqkv_BnX, const Tensor& dk_rot_BPHD) {
  const auto segments = sequence_.segments();
  const Tensor dhalo_sBWX =
      single_segment() ? Tensor()
                       : scratch.take({std::ssize(segments), batch_, config_.conv - 1, dqkv_BnX.size(2)}, dtype_);
  for (size_t i = 0; i < segments.size(); ++i) {
    const int64_t begin = segments[i].local_begin, count = segments[i].size();
    ConvRopeBackward args = convolution_args<ConvRopeBackward>(w, i);
    args.dx_BTC = dpre_BnX.slice(1, begin, count), args.dhalo_BWC = of_segment(dhalo_sBWX, i);
    args.dw_CW = grad.conv_XW, args.db_C = grad.conv_bias_X;
    args.dy_BTC = dqkv_BnX.slice(1, begin, count), args.dk_rot_BPHD = rotated_keys_of_segment(dk_rot_BPHD, segments[i]);
    ops.conv_silu_rope_backward(args);
  }
  return single_segment() ? Pending() : sequence_.conv_halo_backward(scratch, dpre_BnX, dhalo_sBWX);
}

}  // namespace tmamba
