#include "model/mixer.h"

#include <cmath>

namespace tmamba {

MixerParams MixerParams::of(const ParameterTable& table, const Tensor& flat, const ModelConfig& config, int64_t layer) {
  auto view = [&](const char* name) { return table.view(flat, str("layers.", layer, ".mixer.", name)); };
  const Tensor out_norm = view("out_norm.weight");
  return {.qkv_XC = view("qkv.weight"),
          .conv_XW = view("conv.weight"),
          .conv_bias_X = view("conv.bias"),
          .z_CC = config.z_gate ? view("z.weight") : Tensor(),
          .dt_HC = view("dt.weight"),
          .dt_bias_H = view("dt.bias"),
          .A_log_H = view("A_log"),
          .D_H = view("D"),
          .out_norm_HD = out_norm.split(0, out_norm.size(0) / config.head_dim(), config.head_dim()),
          .out_CC = view("out.weight")};
}

Mixer::Mixer(const ModelConfig& config, const LayerLayout& layer, SequenceExchange& sequence, int64_t batch,
             int64_t local_heads, DType dtype, Arena& saved)
    : config_(config),
      layer_(layer),
      sequence_(sequence),
      batch_(batch),
      tokens_(sequence.local_tokens()),
      heads_(local_heads),
      head_dim_(config.head_dim()),
      dtype_(dtype),
      acc_(accumulate_type(dtype)) {
  const auto segments = sequence.segments();
  for (size_t i = 0; i < segments.size(); ++i) {
    const TokenRange attention = layer.attention_part(segments[i]), ssm = layer.ssm_part(segments[i]);
    if (!attention.empty())
      attention_.push_back({i, attention.begin, segments[i].row(attention.begin), attention.size()});
    if (!ssm.empty()) ssm_.push_back({i, ssm.begin, segments[i].row(ssm.begin), ssm.size()});
    prefix_ += attention.size(), suffix_ += ssm.size();
  }
  keys_ = layer.keys_needed(sequence.rank()).end;
  keys_are_local_ = !layer.exchanges_keys();

  const int64_t B = batch, n = tokens_, s = static_cast<int64_t>(segments.size()), H = heads_, D = head_dim_;
  pre_BnX_ = saved.take({B, n, 3 * H * D}, dtype);
  qkv_BnX_ = saved.take({B, n, 3 * H * D}, dtype);
  mixed_BnC_ = saved.take({B, n, H * D}, dtype);
  if (!alone()) halo_sBWX_ = saved.take({s, B, config.conv - 1, 3 * H * D}, dtype);
  k_rot_BPHD_ = saved.take({B, prefix_, H, D}, dtype);
  lse_BPH_ = saved.take({B, prefix_, H}, acc_);
  if (!has_ssm()) return;
  raw_BnH_ = saved.take({B, n, H}, dtype);
  dt_BnH_ = saved.take({B, n, H}, acc_);
  log_a_BnH_ = saved.take({B, n, H}, acc_);
  if (!alone()) {
    decays_KBH_ = saved.take({static_cast<int64_t>(sequence.layout().segments().size()), B, H}, acc_);
    inflow_sBHDD_ = saved.take({s, B, H, D, D}, acc_);
  }
  if (suffix_ == 0) return;
  if (ssm_.front().position == layer.transpoint()) state_BHDD_ = saved.take({B, H, D, D}, acc_);
  if (ssm_.back().position + ssm_.back().count == sequence.layout().tokens())
    final_state_BHDD_ = saved.take({B, H, D, D}, acc_);
  if (config.z_gate) z_BSC_ = saved.take({B, suffix_, H * D}, dtype);
  y_BSHD_ = saved.take({B, suffix_, H, D}, dtype);
  rstd_BSH_ = saved.take({B, suffix_, H}, acc_);
}

Tensor Mixer::part(const Tensor& qkv_BnX, int64_t which, int64_t begin, int64_t count) const {
  const int64_t width = heads_ * head_dim_;
  return qkv_BnX.slice(1, begin, count).slice(2, which * width, width).split(2, heads_, head_dim_);
}

Tensor Mixer::heads(const Tensor& rows_BnC, int64_t begin, int64_t count) const {
  return rows_BnC.slice(1, begin, count).split(2, heads_, head_dim_);
}

// Room for the keys, or values, that the queries of this rank see; none without queries.
Tensor Mixer::all_keys(Arena& scratch) const {
  return keys_ > 0 ? scratch.take({batch_, keys_, heads_, head_dim_}, dtype_) : Tensor();
}

Tensor Mixer::flat_states(const Tensor& states_sBHDD) const {
  return states_sBHDD.view({states_sBHDD.size(0), batch_, heads_, head_dim_ * head_dim_});
}

// --- Forward
// -----------------------------------------------------------------------------------------------------------

void Mixer::forward(Ops& ops, Arena& scratch, const MixerParams& w, Tensor out_NC, ConstTensor u_NC) {
  const int64_t N = batch_ * tokens_, H = heads_, width = heads_ * head_dim_;
  ops.linear_forward(pre_BnX_.view({N, 3 * width}), u_NC, w.qkv_XC);
  convolve(ops, scratch, w);
  if (has_ssm()) {
    ops.linear_forward(raw_BnH_.view({N, H}), u_NC, w.dt_HC);
    ops.dt_forward(dt_BnH_.view({N, H}), log_a_BnH_.view({N, H}), raw_BnH_.view({N, H}), w.dt_bias_H, w.A_log_H);
    summarize_segments(ops, scratch);
  }
  attention_forward(ops, scratch);
  if (suffix_ > 0) {
    if (config_.z_gate) project_suffix(ops, u_NC, w.z_CC);
    ssm_forward(ops, w);
  }
  ops.linear_forward(out_NC, mixed_BnC_.view({N, width}), w.out_CC);
}

void Mixer::convolve(Ops& ops, Arena& scratch, const MixerParams& w) {
  if (!alone()) sequence_.conv_halo(scratch, halo_sBWX_, pre_BnX_);
  int64_t i = 0;
  for (const Segment& s : sequence_.segments()) {
    const Tensor halo = alone() ? Tensor() : halo_sBWX_.select(0, i++);
    ops.conv_silu_forward(qkv_BnX_.slice(1, s.local_begin, s.size()), pre_BnX_.slice(1, s.local_begin, s.size()), halo,
                          w.conv_XW, w.conv_bias_X);
  }
}

// z of the SSM tokens alone: their rows of every sequence.
void Mixer::project_suffix(Ops& ops, ConstTensor u_NC, const Tensor& w_CC) {
  for (int64_t b = 0; b < batch_; ++b)
    ops.linear_forward(z_BSC_.select(0, b), u_NC.slice(0, b * tokens_ + prefix_, suffix_), w_CC);
}

void Mixer::attention_forward(Ops& ops, Arena& scratch) {
  const size_t mark = scratch.used();
  for (const Part& p : attention_) {
    const Tensor q = part(qkv_BnX_, 0, p.row, p.count);
    ops.rope_forward(k_rot_BPHD_.slice(1, p.row, p.count), part(qkv_BnX_, 1, p.row, p.count), p.position,
                     config_.rope_theta);
    ops.rope_forward(q, q, p.position, config_.rope_theta);
  }
  const Tensor local_v = part(qkv_BnX_, 2, 0, prefix_);
  Tensor k = k_rot_BPHD_, v = local_v;
  if (!keys_are_local_) {
    k = all_keys(scratch), v = all_keys(scratch);
    sequence_.gather_keys(scratch, layer_, k, v, k_rot_BPHD_, local_v);
  }
  for (const Part& p : attention_) {
    ops.attention_forward({.o_BTHD = heads(mixed_BnC_, p.row, p.count),
                           .lse_BTH = lse_BPH_.slice(1, p.row, p.count),
                           .q_BTHD = part(qkv_BnX_, 0, p.row, p.count),
                           .k_BSHD = k.slice(1, 0, p.position + p.count),
                           .v_BSHD = v.slice(1, 0, p.position + p.count),
                           .q_begin = p.position,
                           .scale = 1.0 / std::sqrt(static_cast<double>(head_dim_))});
  }
  scratch.rewind(mark);
}

// What each segment adds to the state with nothing before it, and by how much it decays what is; then the scan over all
// segments of all ranks gives the state before each. Prefix segments take part as the Memory Converter.
void Mixer::summarize_segments(Ops& ops, Arena& scratch) {
  if (alone()) return;
  const size_t mark = scratch.used();
  const auto segments = sequence_.segments();
  const int64_t s = static_cast<int64_t>(segments.size());
  const Tensor state_sBHDD = scratch.take({s, batch_, heads_, head_dim_, head_dim_}, acc_);
  const Tensor decay_sBH = scratch.take({s, batch_, heads_}, acc_);
  for (int64_t i = 0; i < s; ++i) {
    const Segment& segment = segments[static_cast<size_t>(i)];
    const TokenRange tokens = exact() ? segment.range() : layer_.ssm_part(segment);
    if (tokens.empty()) {
      ops.fill(state_sBHDD.select(0, i), 0), ops.fill(decay_sBH.select(0, i), 0);
      continue;
    }
    const int64_t row = segment.row(tokens.begin);
    ops.ssd_forward({.final_state_BHKD = state_sBHDD.select(0, i),
                     .log_decay_BH = decay_sBH.select(0, i),
                     .k_BTHD = part(qkv_BnX_, 1, row, tokens.size()),
                     .v_BTHD = part(qkv_BnX_, 2, row, tokens.size()),
                     .dt_BTH = dt_BnH_.slice(1, row, tokens.size()),
                     .log_a_BTH = log_a_BnH_.slice(1, row, tokens.size()),
                     .chunk = config_.chunk});
  }
  sequence_.scan_states(scratch, layer_, flat_states(inflow_sBHDD_), decays_KBH_, flat_states(state_sBHDD), decay_sBH);
  scratch.rewind(mark);
}

// The Memory Converter within one segment: the scan over the prefix's own k and v, outputs discarded (paper eq. 9).
void Mixer::converter_forward(Ops& ops, const Part& prefix, Tensor state_BHDD) {
  ops.ssd_forward(
      {.final_state_BHKD = state_BHDD,
       .k_BTHD = part(qkv_BnX_, 1, prefix.row, prefix.count),
       .v_BTHD = part(qkv_BnX_, 2, prefix.row, prefix.count),
       .dt_BTH = dt_BnH_.slice(1, prefix.row, prefix.count),
       .log_a_BTH = log_a_BnH_.slice(1, prefix.row, prefix.count),
       .initial_state_BHKD = alone() ? Tensor() : inflow_sBHDD_.select(0, static_cast<int64_t>(prefix.segment)),
       .chunk = config_.chunk});
}

void Mixer::ssm_forward(Ops& ops, const MixerParams& w) {
  for (const Part& p : ssm_) {
    const bool at_transpoint = p.position == layer_.transpoint();
    const bool splits = !attention_.empty() && attention_.back().segment == p.segment;
    Tensor initial = at_transpoint ? state_BHDD_ : inflow_sBHDD_.select(0, static_cast<int64_t>(p.segment));
    if (at_transpoint) {
      if (splits && exact()) {
        converter_forward(ops, attention_.back(), state_BHDD_);
      } else if (!alone() && exact()) {
        ops.copy(state_BHDD_, inflow_sBHDD_.select(0, static_cast<int64_t>(p.segment)));
      } else {
        ops.fill(state_BHDD_, 0);
      }
    }
    const bool last = p.position + p.count == sequence_.layout().tokens();
    ops.ssd_forward({.y_BTHD = y_BSHD_.slice(1, p.row - prefix_, p.count),
                     .final_state_BHKD = last ? final_state_BHDD_ : Tensor(),
                     .q_BTHD = part(qkv_BnX_, 0, p.row, p.count),
                     .k_BTHD = part(qkv_BnX_, 1, p.row, p.count),
                     .v_BTHD = part(qkv_BnX_, 2, p.row, p.count),
                     .dt_BTH = dt_BnH_.slice(1, p.row, p.count),
                     .log_a_BTH = log_a_BnH_.slice(1, p.row, p.count),
                     .D_H = w.D_H,
                     .initial_state_BHKD = initial,
                     .chunk = config_.chunk});
  }
  const Tensor z = config_.z_gate ? z_BSC_.split(2, heads_, head_dim_) : Tensor();
  ops.gated_norm_forward(heads(mixed_BnC_, prefix_, suffix_), rstd_BSH_, y_BSHD_, z, w.out_norm_HD, config_.norm_eps);
}

// --- Backward
// ----------------------------------------------------------------------------------------------------------

void Mixer::backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor du_NC,
                     ConstTensor dout_NC, ConstTensor u_NC) {
  const size_t mark = scratch.used();
  const int64_t B = batch_, n = tokens_, H = heads_, width = heads_ * head_dim_, N = B * n;
  const Tensor dmixed_BnC = scratch.take({B, n, width}, dtype_);
  const Tensor dqkv_BnX = scratch.take({B, n, 3 * width}, dtype_);
  ops.linear_backward_input(dmixed_BnC.view({N, width}), dout_NC, w.out_CC, false);
  ops.linear_backward_weight(grad.out_CC, dout_NC, mixed_BnC_.view({N, width}));

  attention_backward(ops, scratch, dqkv_BnX, dmixed_BnC);
  Tensor draw_BnH, dz_BSC;
  if (has_ssm()) {
    draw_BnH = scratch.take({B, n, H}, dtype_);
    if (config_.z_gate && suffix_ > 0) dz_BSC = scratch.take({B, suffix_, width}, dtype_);
    ssm_backward(ops, scratch, w, grad, dqkv_BnX, draw_BnH, dz_BSC, dmixed_BnC);
  }

  const Tensor dpre_BnX = scratch.take({B, n, 3 * width}, dtype_);
  convolve_backward(ops, scratch, w, grad, dpre_BnX, dqkv_BnX);
  const Tensor dpre_NX = dpre_BnX.view({N, 3 * width});
  ops.linear_backward_input(du_NC, dpre_NX, w.qkv_XC, false);
  ops.linear_backward_weight(grad.qkv_XC, dpre_NX, u_NC);
  if (has_ssm()) {
    ops.linear_backward_input(du_NC, draw_BnH.view({N, H}), w.dt_HC, true);
    ops.linear_backward_weight(grad.dt_HC, draw_BnH.view({N, H}), u_NC);
  }
  for (int64_t b = 0; b < B && config_.z_gate && suffix_ > 0; ++b) {
    ops.linear_backward_input(du_NC.slice(0, b * n + prefix_, suffix_), dz_BSC.select(0, b), w.z_CC, true);
    ops.linear_backward_weight(grad.z_CC, dz_BSC.select(0, b), u_NC.slice(0, b * n + prefix_, suffix_));
  }
  scratch.rewind(mark);
}

void Mixer::convolve_backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad,
                              const Tensor& dpre_BnX, const Tensor& dqkv_BnX) {
  const size_t mark = scratch.used();
  const auto segments = sequence_.segments();
  const Tensor dhalo_sBWX =
      alone()
          ? Tensor()
          : scratch.take({static_cast<int64_t>(segments.size()), batch_, config_.conv - 1, dqkv_BnX.size(2)}, dtype_);
  int64_t i = 0;
  for (const Segment& s : segments) {
    const Tensor halo = alone() ? Tensor() : halo_sBWX_.select(0, i),
                 dhalo = alone() ? Tensor() : dhalo_sBWX.select(0, i);
    ops.conv_silu_backward(dpre_BnX.slice(1, s.local_begin, s.size()), dhalo, grad.conv_XW, grad.conv_bias_X,
                           dqkv_BnX.slice(1, s.local_begin, s.size()), pre_BnX_.slice(1, s.local_begin, s.size()), halo,
                           w.conv_XW, w.conv_bias_X);
    ++i;
  }
  if (!alone()) sequence_.conv_halo_backward(scratch, dpre_BnX, dhalo_sBWX);
  scratch.rewind(mark);
}

void Mixer::attention_backward(Ops& ops, Arena& scratch, const Tensor& dqkv_BnX, const Tensor& dmixed_BnC) {
  const size_t mark = scratch.used();
  const int64_t B = batch_, H = heads_, D = head_dim_;
  const Tensor dk_rot_BPHD = scratch.take({B, prefix_, H, D}, dtype_);
  const Tensor local_dv = part(dqkv_BnX, 2, 0, prefix_), local_v = part(qkv_BnX_, 2, 0, prefix_);
  Tensor k = k_rot_BPHD_, v = local_v, dk = dk_rot_BPHD, dv = local_dv;
  if (!keys_are_local_) {
    k = all_keys(scratch), v = all_keys(scratch), dk = all_keys(scratch), dv = all_keys(scratch);
    sequence_.gather_keys(scratch, layer_, k, v, k_rot_BPHD_, local_v);
  }
  if (prefix_ > 0) ops.fill(dk, 0), ops.fill(dv, 0);
  for (const Part& p : attention_) {
    const int64_t seen = p.position + p.count;
    ops.attention_backward({.dq_BTHD = part(dqkv_BnX, 0, p.row, p.count),
                            .dk_BSHD = dk.slice(1, 0, seen),
                            .dv_BSHD = dv.slice(1, 0, seen),
                            .do_BTHD = heads(dmixed_BnC, p.row, p.count),
                            .o_BTHD = heads(mixed_BnC_, p.row, p.count),
                            .lse_BTH = lse_BPH_.slice(1, p.row, p.count),
                            .q_BTHD = part(qkv_BnX_, 0, p.row, p.count),
                            .k_BSHD = k.slice(1, 0, seen),
                            .v_BSHD = v.slice(1, 0, seen),
                            .q_begin = p.position,
                            .scale = 1.0 / std::sqrt(static_cast<double>(D))});
  }
  if (!keys_are_local_) sequence_.return_key_gradients(scratch, layer_, dk_rot_BPHD, local_dv, dk, dv);
  for (const Part& p : attention_) {
    const Tensor dq = part(dqkv_BnX, 0, p.row, p.count);
    ops.rope_backward(dq, dq, p.position, config_.rope_theta);
    ops.rope_backward(part(dqkv_BnX, 1, p.row, p.count), dk_rot_BPHD.slice(1, p.row, p.count), p.position,
                      config_.rope_theta);
  }
  scratch.rewind(mark);
}

// The gradient of the state after each local segment, from what the segments behind it read.
void Mixer::segment_outflows(Ops& ops, Arena& scratch, const Tensor& outflow_sBHDD, const Tensor& dy_BSHD) {
  const size_t mark = scratch.used();
  const Tensor adjoint_sBHDD = scratch.take({outflow_sBHDD.size(0), batch_, heads_, head_dim_, head_dim_}, acc_);
  ops.fill(adjoint_sBHDD, 0);
  for (const Part& p : ssm_) {
    // Behind a TransPoint inside its segment a part delivers to the state there, which its own prefix carries on: the
    // segment's adjoint is that, decayed over the prefix.
    const bool splits = !attention_.empty() && attention_.back().segment == p.segment;
    const Tensor adjoint = adjoint_sBHDD.select(0, static_cast<int64_t>(p.segment));
    if (splits && !exact()) continue;
    ops.ssd_adjoint(adjoint, {}, part(qkv_BnX_, 0, p.row, p.count), dy_BSHD.slice(1, p.row - prefix_, p.count),
                    log_a_BnH_.slice(1, p.row, p.count), config_.chunk);
    if (splits) ops.ssd_decay(adjoint, log_a_BnH_.slice(1, attention_.back().row, attention_.back().count));
  }
  sequence_.scan_adjoints(scratch, layer_, flat_states(outflow_sBHDD), flat_states(adjoint_sBHDD), decays_KBH_);
  scratch.rewind(mark);
}

// What the backward scans of SSM tokens and of prefix tokens have in common.
SsdBackward Mixer::ssd_backward_args(const Part& p, const Tensor& dqkv_BnX, const Tensor& ddt_BnH,
                                     const Tensor& dlog_a_BnH) const {
  return {.dk_BTHD = part(dqkv_BnX, 1, p.row, p.count),
          .dv_BTHD = part(dqkv_BnX, 2, p.row, p.count),
          .ddt_BTH = ddt_BnH.slice(1, p.row, p.count),
          .dlog_a_BTH = dlog_a_BnH.slice(1, p.row, p.count),
          .k_BTHD = part(qkv_BnX_, 1, p.row, p.count),
          .v_BTHD = part(qkv_BnX_, 2, p.row, p.count),
          .dt_BTH = dt_BnH_.slice(1, p.row, p.count),
          .log_a_BTH = log_a_BnH_.slice(1, p.row, p.count),
          .chunk = config_.chunk};
}

void Mixer::ssm_backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad,
                         const Tensor& dqkv_BnX, const Tensor& draw_BnH, const Tensor& dz_BSC,
                         const Tensor& dmixed_BnC) {
  const size_t mark = scratch.used();
  const int64_t B = batch_, n = tokens_, H = heads_, D = head_dim_, N = B * n;
  const int64_t s = static_cast<int64_t>(sequence_.segments().size());
  const Tensor ddt_BnH = scratch.take({B, n, H}, acc_), dlog_a_BnH = scratch.take({B, n, H}, acc_);
  const Tensor dstate_BHDD = scratch.take({B, H, D, D}, acc_);
  const Tensor outflow_sBHDD = alone() ? Tensor() : scratch.take({s, B, H, D, D}, acc_);
  const Tensor dy_BSHD = suffix_ > 0 ? scratch.take({B, suffix_, H, D}, dtype_) : Tensor();
  if (suffix_ > 0) {
    const Tensor z = config_.z_gate ? z_BSC_.split(2, H, D) : Tensor(),
                 dz = config_.z_gate ? dz_BSC.split(2, H, D) : Tensor();
    ops.gated_norm_backward(dy_BSHD, dz, grad.out_norm_HD, heads(dmixed_BnC, prefix_, suffix_), y_BSHD_, z, rstd_BSH_,
                            w.out_norm_HD);
  }
  if (!alone()) segment_outflows(ops, scratch, outflow_sBHDD, dy_BSHD);
  auto outflow = [&](size_t segment) {
    return alone() ? Tensor() : outflow_sBHDD.select(0, static_cast<int64_t>(segment));
  };
  auto inflow = [&](size_t segment) {
    return alone() ? Tensor() : inflow_sBHDD_.select(0, static_cast<int64_t>(segment));
  };

  for (const Part& p : ssm_) {
    SsdBackward args = ssd_backward_args(p, dqkv_BnX, ddt_BnH, dlog_a_BnH);
    args.dq_BTHD = part(dqkv_BnX, 0, p.row, p.count), args.q_BTHD = part(qkv_BnX_, 0, p.row, p.count);
    args.dy_BTHD = dy_BSHD.slice(1, p.row - prefix_, p.count), args.D_H = w.D_H, args.dD_H = grad.D_H;
    args.initial_state_BHKD = p.position == layer_.transpoint() ? state_BHDD_ : inflow(p.segment);
    args.dfinal_state_BHKD = outflow(p.segment);
    if (p.position == layer_.transpoint()) args.dinitial_state_BHKD = dstate_BHDD;
    ops.ssd_backward(args);
  }
  for (const Part& p : attention_) {
    if (!exact()) {
      ops.fill(ddt_BnH.slice(1, p.row, p.count), 0), ops.fill(dlog_a_BnH.slice(1, p.row, p.count), 0);
      continue;
    }
    // Through the converter, gradients reach the prefix's k and v a second time, beside those from attention.
    const bool splits = !ssm_.empty() && ssm_.front().segment == p.segment;
    SsdBackward args = ssd_backward_args(p, dqkv_BnX, ddt_BnH, dlog_a_BnH);
    args.dfinal_state_BHKD = splits ? dstate_BHDD : outflow(p.segment);
    args.initial_state_BHKD = inflow(p.segment);
    args.accumulate_kv = true;
    ops.ssd_backward(args);
  }
  ops.dt_backward(draw_BnH.view({N, H}), grad.dt_bias_H, grad.A_log_H, ddt_BnH.view({N, H}), dlog_a_BnH.view({N, H}),
                  raw_BnH_.view({N, H}), w.dt_bias_H, w.A_log_H);
  scratch.rewind(mark);
}

}  // namespace tmamba
