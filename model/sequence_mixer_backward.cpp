#include <cmath>
#include <utility>

#include "model/sequence_mixer.h"

namespace tmamba {

SequenceMixer::Keys SequenceMixer::begin_backward(Arena& scratch) { return gather_keys(scratch); }

Pending SequenceMixer::backward(Ops& ops, Arena& scratch, const SequenceMixerParams& w, const SequenceMixerParams& grad,
                                Tensor dpre_BnX, Tensor draw_BnH, ConstTensor do_BPHD, ConstTensor dy_BSHD, Keys keys) {
  const int64_t B = batch_, n = tokens_, H = heads_, D = head_dim_, N = B * n;
  const Tensor dqkv_BnX = scratch.take({B, n, 3 * H * D}, dtype_);
  const Tensor dk_apart_BPHD = keys_apart() ? scratch.take({B, prefix_, H, D}, dtype_) : Tensor();
  const Tensor dk_rot_BPHD = rotated_keys(dk_apart_BPHD, dqkv_BnX), local_dv = part(dqkv_BnX, 2, 0, prefix_);
  Tensor ddt_BnH, dlog_a_BnH, dstate_BHDD, outflow_sBHDD;
  Pending outflow;
  if (has_ssm()) {
    ddt_BnH = scratch.take({B, n, H}, acc_), dlog_a_BnH = scratch.take({B, n, H}, acc_);
    dstate_BHDD = scratch.take({B, H, D, D}, acc_);
    if (!alone()) {
      outflow_sBHDD = scratch.take({std::ssize(sequence_.segments()), B, H, D, D}, acc_);
      outflow = segment_outflows(ops, scratch, outflow_sBHDD, dy_BSHD);
    }
  }

  Tensor dk = dk_rot_BPHD, dv = local_dv;
  if (layer_.exchanges_keys()) dk = all_keys(scratch), dv = all_keys(scratch);
  if (prefix_ > 0) ops.fill({dk, 0}), ops.fill({dv, 0});
  keys.arrival.finish();
  attention_backward(ops, dqkv_BnX, do_BPHD, keys, dk, dv);
  outflow.issue_last();
  Pending key_gradients;
  if (layer_.exchanges_keys()) {
    key_gradients = sequence_.return_key_gradients(scratch, layer_, transport_.keys, dk_rot_BPHD, local_dv, dk, dv);
  }

  outflow.finish();
  for (const Part& p : ssm_) {
    SsdBackward args = ssd_backward_args(p, dqkv_BnX, ddt_BnH, dlog_a_BnH);
    const bool at_transpoint = p.position == layer_.transpoint();
    args.dq_BTHD = part(dqkv_BnX, 0, p.row, p.count), args.q_BTHD = part(qkv_BnX_, 0, p.row, p.count);
    args.dy_BTHD = dy_BSHD.slice(1, p.row - prefix_, p.count), args.D_H = w.D_H, args.dD_H = grad.D_H;
    args.initial_state_BHKD = at_transpoint ? state_BHDD_ : of_segment(inflow_sBHDD_, p.segment);
    args.dfinal_state_BHKD = of_segment(outflow_sBHDD, p.segment);
    if (at_transpoint) args.dinitial_state_BHKD = dstate_BHDD;
    ops.ssd_backward(args);
  }
  key_gradients.finish();
  for (const Part& p : attention_) {
    if (!has_ssm()) continue;
    if (!exact()) {
      ops.fill({part(dqkv_BnX, 1, p.row, p.count), 0});
      ops.fill({ddt_BnH.slice(1, p.row, p.count), 0}), ops.fill({dlog_a_BnH.slice(1, p.row, p.count), 0});
      continue;
    }
    // Through the converter, gradients reach the prefix's plain keys, and its values beside those from attention.
    const bool splits = !ssm_.empty() && ssm_.front().segment == p.segment;
    SsdBackward args = ssd_backward_args(p, dqkv_BnX, ddt_BnH, dlog_a_BnH);
    args.dfinal_state_BHKD = splits ? dstate_BHDD : of_segment(outflow_sBHDD, p.segment);
    args.initial_state_BHKD = of_segment(inflow_sBHDD_, p.segment);
    args.accumulate_v = true;
    ops.ssd_backward(args);
  }
  Pending halo = convolve_backward(ops, scratch, w, grad, dpre_BnX, dqkv_BnX, dk_apart_BPHD);
  if (has_ssm()) {
    ops.dt_backward({.draw_NH = draw_BnH.view({N, H}),
                     .dbias_H = grad.dt_bias_H,
                     .dA_log_H = grad.A_log_H,
                     .ddt_NH = ddt_BnH.view({N, H}),
                     .dlog_a_NH = dlog_a_BnH.view({N, H}),
                     .raw_NH = raw_BnH_.view({N, H}),
                     .bias_H = w.dt_bias_H,
                     .A_log_H = w.A_log_H});
  }
  return halo;
}

void SequenceMixer::attention_backward(Ops& ops, const Tensor& dqkv_BnX, const ConstTensor& do_BPHD, const Keys& keys,
                                       const Tensor& dk_BSHD, const Tensor& dv_BSHD) {
  for (const Part& p : attention_) {
    const int64_t seen = p.position + p.count;
    ops.attention_backward({.dq_BTHD = part(dqkv_BnX, 0, p.row, p.count),
                            .dk_BSHD = dk_BSHD.slice(1, 0, seen),
                            .dv_BSHD = dv_BSHD.slice(1, 0, seen),
                            .do_BTHD = do_BPHD.slice(1, p.row, p.count),
                            .o_BTHD = o_BPHD_.slice(1, p.row, p.count),
                            .lse_BTH = lse_BPH_.slice(1, p.row, p.count),
                            .q_BTHD = part(qkv_BnX_, 0, p.row, p.count),
                            .k_BSHD = keys.k_BSHD.slice(1, 0, seen),
                            .v_BSHD = keys.v_BSHD.slice(1, 0, seen),
                            .q_begin = p.position,
                            .scale = 1.0 / std::sqrt(static_cast<double>(head_dim_))});
  }
}

// The gradient of the state after each local segment, from what the segments behind it read.
Pending SequenceMixer::segment_outflows(Ops& ops, Arena& scratch, const Tensor& outflow_sBHDD,
                                        const ConstTensor& dy_BSHD) {
  const Tensor adjoint_sBHDD = scratch.take({outflow_sBHDD.size(0), batch_, heads_, head_dim_, head_dim_}, acc_);
  ops.fill({adjoint_sBHDD, 0});
  for (const Part& p : ssm_) {
    // Behind a TransPoint inside its segment a part delivers to the state there, which its own prefix carries on: the
    // segment's adjoint is that, decayed over the prefix.
    const bool splits = !attention_.empty() && attention_.back().segment == p.segment;
    const Tensor adjoint = of_segment(adjoint_sBHDD, p.segment);
    if (splits && !exact()) continue;
    ops.ssd_adjoint({.dinitial_BHKD = adjoint,
                     .q_BTHD = part(qkv_BnX_, 0, p.row, p.count),
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

// What the backward scans of SSM tokens and of prefix tokens have in common.
SsdBackward SequenceMixer::ssd_backward_args(const Part& p, const Tensor& dqkv_BnX, const Tensor& ddt_BnH,
                                             const Tensor& dlog_a_BnH) const {
  SsdBackward args = scan_args<SsdBackward>(p.row, p.count);
  args.dk_BTHD = part(dqkv_BnX, 1, p.row, p.count), args.dv_BTHD = part(dqkv_BnX, 2, p.row, p.count);
  args.ddt_BTH = ddt_BnH.slice(1, p.row, p.count), args.dlog_a_BTH = dlog_a_BnH.slice(1, p.row, p.count);
  return args;
}

Pending SequenceMixer::convolve_backward(Ops& ops, Arena& scratch, const SequenceMixerParams& w,
                                         const SequenceMixerParams& grad, const Tensor& dpre_BnX,
                                         const Tensor& dqkv_BnX, const Tensor& dk_rot_BPHD) {
  const auto segments = sequence_.segments();
  const Tensor dhalo_sBWX =
      alone() ? Tensor() : scratch.take({std::ssize(segments), batch_, config_.conv - 1, dqkv_BnX.size(2)}, dtype_);
  for (size_t i = 0; i < segments.size(); ++i) {
    const int64_t begin = segments[i].local_begin, count = segments[i].size();
    ConvRopeBackward args = convolution_args<ConvRopeBackward>(w, i);
    args.dx_BTC = dpre_BnX.slice(1, begin, count), args.dhalo_BWC = of_segment(dhalo_sBWX, i);
    args.dw_CW = grad.conv_XW, args.db_C = grad.conv_bias_X;
    args.dy_BTC = dqkv_BnX.slice(1, begin, count), args.dk_rot_BPHD = keys_of_segment(dk_rot_BPHD, segments[i]);
    ops.conv_silu_rope_backward(args);
  }
  return alone() ? Pending() : sequence_.conv_halo_backward(scratch, dpre_BnX, dhalo_sBWX);
}

}  // namespace tmamba
