#include "model/mixer.h"

#include <cmath>

namespace tmamba {

MixerParams MixerParams::of(const ParameterTable& table, const Tensor& flat, const ModelConfig& config, int64_t layer) {
  auto view = [&](const char* name) { return table.view(flat, str("layers.", layer, ".mixer.", name)); };
  const Tensor out_norm = view("out_norm.weight");
  return {.qkv_XC = view("qkv.weight"), .conv_XW = view("conv.weight"), .conv_bias_X = view("conv.bias"),
          .z_CC = config.z_gate ? view("z.weight") : Tensor(), .dt_HC = view("dt.weight"),
          .dt_bias_H = view("dt.bias"), .A_log_H = view("A_log"), .D_H = view("D"),
          .out_norm_HD = out_norm.split(0, out_norm.size(0) / config.head_dim(), config.head_dim()),
          .out_CC = view("out.weight")};
}

Mixer::Mixer(const ModelConfig& config, int64_t transpoint, int64_t batch, int64_t tokens, int64_t local_heads,
             DType dtype, Arena& saved)
    : config_(config), transpoint_(transpoint), batch_(batch), tokens_(tokens), heads_(local_heads),
      head_dim_(config.head_dim()), dtype_(dtype) {
  const int64_t B = batch, T = tokens, P = transpoint, S = T - P, H = heads_, D = head_dim_;
  const DType acc = accumulate_type(dtype);
  pre_BTX_ = saved.take({B, T, 3 * H * D}, dtype);
  qkv_BTX_ = saved.take({B, T, 3 * H * D}, dtype);
  mixed_BTC_ = saved.take({B, T, H * D}, dtype);
  if (P > 0) {
    k_rot_BPHD_ = saved.take({B, P, H, D}, dtype);
    lse_BPH_ = saved.take({B, P, H}, acc);
  }
  if (has_ssm()) {
    raw_BTH_ = saved.take({B, T, H}, dtype);
    dt_BTH_ = saved.take({B, T, H}, acc);
    log_a_BTH_ = saved.take({B, T, H}, acc);
    state_BHDD_ = saved.take({B, H, D, D}, acc);
    final_state_BHDD_ = saved.take({B, H, D, D}, acc);
    if (config.z_gate) z_BSC_ = saved.take({B, S, H * D}, dtype);
    y_BSHD_ = saved.take({B, S, H, D}, dtype);
    rstd_BSH_ = saved.take({B, S, H}, acc);
  }
}

template <class View>
View Mixer::part(const View& qkv_BTX, int64_t which, int64_t begin, int64_t count) const {
  const int64_t width = heads_ * head_dim_;
  return qkv_BTX.slice(1, begin, count).slice(2, which * width, width).split(2, heads_, head_dim_);
}

void Mixer::forward(Ops& ops, Arena&, const MixerParams& w, Tensor out_NC, ConstTensor u_NC) {
  const int64_t N = batch_ * tokens_, H = heads_, width = heads_ * head_dim_;
  ops.linear_forward(pre_BTX_.view({N, 3 * width}), u_NC, w.qkv_XC);
  ops.conv_silu_forward(qkv_BTX_, pre_BTX_, {}, w.conv_XW, w.conv_bias_X);
  if (transpoint_ > 0) attention_forward(ops);
  if (has_ssm()) {
    ops.linear_forward(raw_BTH_.view({N, H}), u_NC, w.dt_HC);
    ops.dt_forward(dt_BTH_.view({N, H}), log_a_BTH_.view({N, H}), raw_BTH_.view({N, H}), w.dt_bias_H, w.A_log_H);
    if (config_.z_gate) project_suffix(ops, z_BSC_, u_NC, w.z_CC);
    ssm_forward(ops, w);
  }
  ops.linear_forward(out_NC, mixed_BTC_.view({N, width}), w.out_CC);
}

// z of the SSM tokens alone: their rows of every sequence.
void Mixer::project_suffix(Ops& ops, Tensor z_BSC, ConstTensor u_NC, const Tensor& w_CC) const {
  for (int64_t b = 0; b < batch_; ++b) {
    ops.linear_forward(z_BSC.select(0, b), u_NC.slice(0, b * tokens_ + transpoint_, tokens_ - transpoint_), w_CC);
  }
}

void Mixer::attention_forward(Ops& ops) {
  const int64_t P = transpoint_;
  const Tensor q = part(qkv_BTX_, 0, 0, P), k = part(qkv_BTX_, 1, 0, P), v = part(qkv_BTX_, 2, 0, P);
  ops.rope_forward(k_rot_BPHD_, k, 0, config_.rope_theta);
  ops.rope_forward(q, q, 0, config_.rope_theta);
  ops.attention_forward({.o_BTHD = mixed_BTC_.slice(1, 0, P).split(2, heads_, head_dim_), .lse_BTH = lse_BPH_,
                         .q_BTHD = q, .k_BSHD = k_rot_BPHD_, .v_BSHD = v, .q_begin = 0,
                         .scale = 1.0 / std::sqrt(static_cast<double>(head_dim_))});
}

void Mixer::ssm_forward(Ops& ops, const MixerParams& w) {
  const int64_t P = transpoint_, S = tokens_ - transpoint_;
  if (converts()) {
    // The Memory Converter: the scan over the prefix's own k and v, outputs discarded (paper eq. 9).
    ops.ssd_forward({.y_BTHD = {}, .final_state_BHKD = state_BHDD_, .log_decay_BH = {}, .q_BTHD = {},
                     .k_BTHD = part(qkv_BTX_, 1, 0, P), .v_BTHD = part(qkv_BTX_, 2, 0, P),
                     .dt_BTH = dt_BTH_.slice(1, 0, P), .log_a_BTH = log_a_BTH_.slice(1, 0, P), .D_H = {},
                     .initial_state_BHKD = {}, .chunk = config_.chunk});
  } else {
    ops.fill(state_BHDD_, 0);
  }
  ops.ssd_forward({.y_BTHD = y_BSHD_, .final_state_BHKD = final_state_BHDD_, .log_decay_BH = {},
                   .q_BTHD = part(qkv_BTX_, 0, P, S), .k_BTHD = part(qkv_BTX_, 1, P, S),
                   .v_BTHD = part(qkv_BTX_, 2, P, S), .dt_BTH = dt_BTH_.slice(1, P, S),
                   .log_a_BTH = log_a_BTH_.slice(1, P, S), .D_H = w.D_H, .initial_state_BHKD = state_BHDD_,
                   .chunk = config_.chunk});
  const Tensor z = config_.z_gate ? z_BSC_.split(2, heads_, head_dim_) : Tensor();
  ops.gated_norm_forward(mixed_BTC_.slice(1, P, S).split(2, heads_, head_dim_), rstd_BSH_, y_BSHD_, z, w.out_norm_HD,
                         config_.norm_eps);
}

void Mixer::backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor du_NC,
                     ConstTensor dout_NC, ConstTensor u_NC) {
  const size_t mark = scratch.used();
  const int64_t B = batch_, T = tokens_, P = transpoint_, S = T - P, H = heads_, width = heads_ * head_dim_, N = B * T;
  const Tensor dmixed_BTC = scratch.take({B, T, width}, dtype_);
  const Tensor dqkv_BTX = scratch.take({B, T, 3 * width}, dtype_);
  ops.linear_backward_input(dmixed_BTC.view({N, width}), dout_NC, w.out_CC, false);
  ops.linear_backward_weight(grad.out_CC, dout_NC, mixed_BTC_.view({N, width}));

  Tensor draw_BTH, dz_BSC;
  if (P > 0) attention_backward(ops, scratch, dqkv_BTX, dmixed_BTC);
  if (has_ssm()) {
    draw_BTH = scratch.take({B, T, H}, dtype_);
    if (config_.z_gate) dz_BSC = scratch.take({B, S, width}, dtype_);
    ssm_backward(ops, scratch, w, grad, dqkv_BTX, draw_BTH, dz_BSC, dmixed_BTC);
  }

  const Tensor dpre_BTX = scratch.take({B, T, 3 * width}, dtype_);
  ops.conv_silu_backward(dpre_BTX, {}, grad.conv_XW, grad.conv_bias_X, dqkv_BTX, pre_BTX_, {}, w.conv_XW, w.conv_bias_X);
  const Tensor dpre_NX = dpre_BTX.view({N, 3 * width});
  ops.linear_backward_input(du_NC, dpre_NX, w.qkv_XC, false);
  ops.linear_backward_weight(grad.qkv_XC, dpre_NX, u_NC);
  if (has_ssm()) {
    ops.linear_backward_input(du_NC, draw_BTH.view({N, H}), w.dt_HC, true);
    ops.linear_backward_weight(grad.dt_HC, draw_BTH.view({N, H}), u_NC);
    for (int64_t b = 0; b < B && config_.z_gate; ++b) {
      ops.linear_backward_input(du_NC.slice(0, b * T + P, S), dz_BSC.select(0, b), w.z_CC, true);
      ops.linear_backward_weight(grad.z_CC, dz_BSC.select(0, b), u_NC.slice(0, b * T + P, S));
    }
  }
  scratch.rewind(mark);
}

void Mixer::attention_backward(Ops& ops, Arena& scratch, Tensor dqkv_BTX, ConstTensor dmixed_BTC) {
  const int64_t B = batch_, P = transpoint_, H = heads_, D = head_dim_;
  const Tensor dk_rot_BPHD = scratch.take({B, P, H, D}, dtype_);
  const Tensor dq = part(dqkv_BTX, 0, 0, P), dk = part(dqkv_BTX, 1, 0, P), dv = part(dqkv_BTX, 2, 0, P);
  ops.fill(dk_rot_BPHD, 0);
  ops.fill(dv, 0);
  ops.attention_backward({.dq_BTHD = dq, .dk_BSHD = dk_rot_BPHD, .dv_BSHD = dv,
                          .do_BTHD = dmixed_BTC.slice(1, 0, P).split(2, H, D),
                          .o_BTHD = mixed_BTC_.slice(1, 0, P).split(2, H, D), .lse_BTH = lse_BPH_,
                          .q_BTHD = part(qkv_BTX_, 0, 0, P), .k_BSHD = k_rot_BPHD_,
                          .v_BSHD = part(qkv_BTX_, 2, 0, P), .q_begin = 0,
                          .scale = 1.0 / std::sqrt(static_cast<double>(D))});
  ops.rope_backward(dq, dq, 0, config_.rope_theta);
  ops.rope_backward(dk, dk_rot_BPHD, 0, config_.rope_theta);
}

void Mixer::ssm_backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor dqkv_BTX,
                         Tensor draw_BTH, Tensor dz_BSC, ConstTensor dmixed_BTC) {
  const int64_t B = batch_, T = tokens_, P = transpoint_, S = T - P, H = heads_, D = head_dim_, N = B * T;
  const DType acc = accumulate_type(dtype_);
  const Tensor dy_BSHD = scratch.take({B, S, H, D}, dtype_);
  const Tensor ddt_BTH = scratch.take({B, T, H}, acc), dlog_a_BTH = scratch.take({B, T, H}, acc);
  const Tensor dstate_BHDD = scratch.take({B, H, D, D}, acc);
  const Tensor z = config_.z_gate ? z_BSC_.split(2, H, D) : Tensor();
  const Tensor dz = config_.z_gate ? dz_BSC.split(2, H, D) : Tensor();
  ops.gated_norm_backward(dy_BSHD, dz, grad.out_norm_HD, dmixed_BTC.slice(1, P, S).split(2, H, D), y_BSHD_, z,
                          rstd_BSH_, w.out_norm_HD);
  ops.ssd_backward({.dq_BTHD = part(dqkv_BTX, 0, P, S), .dk_BTHD = part(dqkv_BTX, 1, P, S),
                    .dv_BTHD = part(dqkv_BTX, 2, P, S), .ddt_BTH = ddt_BTH.slice(1, P, S),
                    .dlog_a_BTH = dlog_a_BTH.slice(1, P, S), .dD_H = grad.D_H, .dinitial_state_BHKD = dstate_BHDD,
                    .dy_BTHD = dy_BSHD, .dfinal_state_BHKD = {}, .q_BTHD = part(qkv_BTX_, 0, P, S),
                    .k_BTHD = part(qkv_BTX_, 1, P, S), .v_BTHD = part(qkv_BTX_, 2, P, S),
                    .dt_BTH = dt_BTH_.slice(1, P, S), .log_a_BTH = log_a_BTH_.slice(1, P, S), .D_H = w.D_H,
                    .initial_state_BHKD = state_BHDD_, .chunk = config_.chunk});
  if (converts()) {
    // Through the converter, gradients reach the prefix's k and v a second time, beside those from attention.
    ops.ssd_backward({.dq_BTHD = {}, .dk_BTHD = part(dqkv_BTX, 1, 0, P), .dv_BTHD = part(dqkv_BTX, 2, 0, P),
                      .ddt_BTH = ddt_BTH.slice(1, 0, P), .dlog_a_BTH = dlog_a_BTH.slice(1, 0, P), .dD_H = {},
                      .dinitial_state_BHKD = {}, .dy_BTHD = {}, .dfinal_state_BHKD = dstate_BHDD, .q_BTHD = {},
                      .k_BTHD = part(qkv_BTX_, 1, 0, P), .v_BTHD = part(qkv_BTX_, 2, 0, P),
                      .dt_BTH = dt_BTH_.slice(1, 0, P), .log_a_BTH = log_a_BTH_.slice(1, 0, P), .D_H = {},
                      .initial_state_BHKD = {}, .chunk = config_.chunk, .accumulate_kv = true});
  } else if (P > 0) {
    ops.fill(ddt_BTH.slice(1, 0, P), 0);
    ops.fill(dlog_a_BTH.slice(1, 0, P), 0);
  }
  ops.dt_backward(draw_BTH.view({N, H}), grad.dt_bias_H, grad.A_log_H, ddt_BTH.view({N, H}), dlog_a_BTH.view({N, H}),
                  raw_BTH_.view({N, H}), w.dt_bias_H, w.A_log_H);
}

}  // namespace tmamba
