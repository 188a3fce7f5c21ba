#include "model/mixer.h"

#include <utility>

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

Mixer::Mixer(const ModelConfig& config, int layer, ModelRanks& ranks, int64_t local_heads, DType dtype, Recompute level)
    : config_(config),
      sequence_(ranks.sequence()),
      layer_(ranks.layout().layer(layer)),
      head_parallel_(ranks.transport(layer).head_parallel),
      batch_(ranks.batch()),
      tokens_(ranks.local_tokens()),
      heads_(local_heads),
      head_dim_(config.head_dim()),
      dtype_(dtype),
      acc_(accumulate_type(dtype)),
      level_(level) {
  for (const Segment& s : sequence_.segments()) prefix_ += layer_.attention_part(s).size();
  suffix_ = tokens_ - prefix_;
  if (head_parallel_) {
    tokens_mixer_.emplace(config, ranks.whole().layout().layer(layer), Transport{}, ranks.whole(), batch_,
                          exact_div(heads_, ranks.layout().ranks()), dtype, level);
  } else {
    tokens_mixer_.emplace(config, layer_, ranks.transport(layer), sequence_, batch_, heads_, dtype, level);
  }
}

void Mixer::place(const AllocationPlan& place) {
  const int64_t B = batch_, P = prefix_, S = suffix_, C = width();
  // Attention outputs are kept where they were made: head-parallel by heads.
  const auto place_o = [&](Tensor& x, int64_t rows) {
    if (head_parallel_) {
      place.keep_below(Recompute::all, x, {B, rows, C}, dtype_);
    } else {
      place.keep(x, {B, rows, C}, dtype_);
    }
  };
  if (S == 0) {
    place_o(mixed_BnC_, P);
  } else {
    place.keep_below(Recompute::cheap, mixed_BnC_, {B, tokens_, C}, dtype_);
    if (keeps_o_apart()) place_o(o_BPC_, P);
    if (config_.z_gate) place.keep_below(Recompute::all, z_BSC_, {B, S, C}, dtype_);
    place.keep_below(Recompute::all, y_BSHD_, {B, S, heads_, head_dim_}, dtype_);
    place.keep_below(Recompute::cheap, rstd_BSH_, {B, S, heads_}, acc_);
  }
  if (head_parallel_) {
    const int64_t T = sequence_.layout().tokens(), before = layer_.transpoint(), share = C / sequence_.layout().ranks();
    place.keep(o_heads_BPC_, {B, before, share}, dtype_);
    place.keep_below(Recompute::none, y_heads_BSC_, {B, T - before, share}, dtype_);
  }
  tokens_mixer_->place(place);
  if (!place.last()) return;
  const auto by_head = [&](const Tensor& x) { return x.split(2, x.size(2) / head_dim_, head_dim_); };
  if (head_parallel_) {
    tokens_mixer_->set_outputs(by_head(o_heads_BPC_), by_head(y_heads_BSC_));
  } else {
    tokens_mixer_->set_outputs(by_head(o_BPC()), y_BSHD_);
  }
}

Tensor Mixer::heads(const Tensor& rows_BnC, int64_t begin, int64_t count) const {
  return rows_BnC.slice(1, begin, count).split(2, heads_, head_dim_);
}

void Mixer::forward(Ops& ops, Arena& scratch, const MixerParams& w, Tensor out_NC, ConstTensor u_NC) {
  const size_t mark = scratch.used();
  SequenceMixer& mixer = *tokens_mixer_;
  const SequenceMixerParams params = params_by_head(ops, scratch, w);
  Pending arrival = project(ops, scratch, w, u_NC, false);
  if (head_parallel_) {
    arrival.finish();
    mixer.forward(ops, scratch, params, mixer.begin_forward(scratch));
    sequence_.to_tokens(scratch, outputs_by_head(o_heads_BPC_, y_heads_BSC_, o_BPC(), y_BSHD_)).finish();
  } else {
    mixer.forward(ops, scratch, params, std::move(arrival));
  }
  gate(ops, w.out_norm_HD);
  project_out(ops, w, out_NC);
  scratch.rewind(mark);
}

void Mixer::recompute(Ops& ops, Arena& scratch, const MixerParams& w, ConstTensor u_NC) {
  if (level_ == Recompute::none) return;
  const bool all = level_ == Recompute::all;
  const size_t mark = scratch.used();
  const SequenceMixerParams params = params_by_head(ops, scratch, w);
  if (all) project(ops, scratch, w, u_NC, true).finish();
  tokens_mixer_->recompute(ops, params);
  if (all && head_parallel_) {
    sequence_.to_tokens(scratch, outputs_by_head(o_heads_BPC_, y_heads_BSC_, o_BPC(), y_BSHD_)).finish();
  }
  gate(ops, w.out_norm_HD);
  scratch.rewind(mark);
}

// q, k, v, the raw step sizes and z; then, or as soon as q, k, v are there, what the mixing of tokens needs of other
// ranks is on its way. `again`: the halo is there from forward.
Pending Mixer::project(Ops& ops, Arena& scratch, const MixerParams& w, ConstTensor u_NC, bool again) {
  const int64_t B = batch_, n = tokens_, N = B * n, H = heads_;
  SequenceMixer& mixer = *tokens_mixer_;
  const Tensor pre_BnX = head_parallel_ ? scratch.take({B, n, 3 * width()}, dtype_) : mixer.pre_BnX();
  const Tensor raw_BnH = !has_ssm() || !head_parallel_ ? mixer.raw_BnH() : scratch.take({B, n, H}, dtype_);
  Pending arrival;
  ops.linear_forward({.y_NO = pre_BnX.view({N, 3 * width()}), .x_NI = u_NC, .w_OI = w.qkv_XC});
  if (!head_parallel_ && !again) arrival = mixer.begin_forward(scratch);
  if (has_ssm()) ops.linear_forward({.y_NO = raw_BnH.view({N, H}), .x_NI = u_NC, .w_OI = w.dt_HC});
  if (head_parallel_) {
    arrival = sequence_.to_heads(scratch, inputs_by_head(mixer.pre_BnX(), mixer.raw_BnH(), pre_BnX, raw_BnH));
  }
  if (gates()) project_suffix(ops, u_NC, w.z_CC);
  return arrival;
}

// The mixed rows, from the outputs of both halves.
void Mixer::gate(Ops& ops, const Tensor& out_norm_HD) {
  if (keeps_o_apart()) ops.copy({mixed_BnC_.slice(1, 0, prefix_), o_BPC_});
  if (suffix_ == 0) return;
  const Tensor z = config_.z_gate ? z_BSC_.split(2, heads_, head_dim_) : Tensor();
  ops.gated_norm_forward({.out_BTHD = heads(mixed_BnC_, prefix_, suffix_),
                          .rstd_BTH = rstd_BSH_,
                          .y_BTHD = y_BSHD_,
                          .z_BTHD = z,
                          .w_HD = out_norm_HD,
                          .eps = config_.norm_eps});
}

void Mixer::project_out(Ops& ops, const MixerParams& w, Tensor out_NC) const {
  ops.linear_forward({.y_NO = out_NC, .x_NI = mixed_BnC_.view({batch_ * tokens_, width()}), .w_OI = w.out_CC});
}

// z of the SSM tokens alone: their rows of every sequence.
void Mixer::project_suffix(Ops& ops, ConstTensor u_NC, const Tensor& w_CC) {
  for (int64_t b = 0; b < batch_; ++b)
    ops.linear_forward(
        {.y_NO = z_BSC_.select(0, b), .x_NI = u_NC.slice(0, b * tokens_ + prefix_, suffix_), .w_OI = w_CC});
}

void Mixer::backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor du_NC,
                     ConstTensor dout_NC, ConstTensor u_NC) {
  const size_t mark = scratch.used();
  const int64_t B = batch_, n = tokens_, H = heads_, D = head_dim_, N = B * n;
  SequenceMixer& mixer = *tokens_mixer_;
  const Tensor dpre_BnX = scratch.take({B, n, 3 * width()}, dtype_);
  const Tensor draw_BnH = has_ssm() ? scratch.take({B, n, H}, dtype_) : Tensor();
  const Tensor dmixed_BnC = scratch.take({B, n, width()}, dtype_);
  const Tensor dy_BSHD = suffix_ > 0 ? scratch.take({B, suffix_, H, D}, dtype_) : Tensor();
  const Tensor dz_BSC = gates() ? scratch.take({B, suffix_, width()}, dtype_) : Tensor();
  const SequenceMixerParams params = params_by_head(ops, scratch, w), grads = zero_grads_by_head(ops, scratch, grad);

  SequenceMixer::Keys keys = mixer.begin_backward(scratch);
  ops.linear_backward_input(
      {.dx_NI = dmixed_BnC.view({N, width()}), .dy_NO = dout_NC, .w_OI = w.out_CC, .accumulate = false});
  if (suffix_ > 0) {
    const Tensor z = config_.z_gate ? z_BSC_.split(2, H, D) : Tensor(),
                 dz = config_.z_gate ? dz_BSC.split(2, H, D) : Tensor();
    ops.gated_norm_backward({.dy_BTHD = dy_BSHD,
                             .dz_BTHD = dz,
                             .dw_HD = grad.out_norm_HD,
                             .dout_BTHD = heads(dmixed_BnC, prefix_, suffix_),
                             .y_BTHD = y_BSHD_,
                             .z_BTHD = z,
                             .rstd_BTH = rstd_BSH_,
                             .w_HD = w.out_norm_HD});
  }
  Pending arrival;
  if (head_parallel_) {
    const int64_t T = sequence_.layout().tokens(), P = layer_.transpoint(), h = H / sequence_.layout().ranks();
    const Tensor dout_BTC = scratch.take({B, T, h * D}, dtype_), dpre_BTX = scratch.take({B, T, 3 * h * D}, dtype_);
    const Tensor draw_BTH = has_ssm() ? scratch.take({B, T, h}, dtype_) : Tensor();
    arrival = sequence_.to_heads(scratch, outputs_by_head(dout_BTC.slice(1, 0, P), dout_BTC.slice(1, P, T - P),
                                                          dmixed_BnC.slice(1, 0, prefix_), dy_BSHD));
    ops.linear_backward_weight({.dw_OI = grad.out_CC, .dy_NO = dout_NC, .x_NI = mixed_BnC_.view({N, width()})});
    arrival.finish();
    const Tensor dout_BThD = dout_BTC.split(2, h, D);
    mixer
        .backward(ops, scratch, params, grads, dpre_BTX, draw_BTH, dout_BThD.slice(1, 0, P),
                  dout_BThD.slice(1, P, T - P), std::move(keys))
        .finish();
    add_grads_by_head(ops, grad, grads);
    arrival = sequence_.to_tokens(scratch, inputs_by_head(dpre_BTX, draw_BTH, dpre_BnX, draw_BnH));
  } else {
    ops.linear_backward_weight({.dw_OI = grad.out_CC, .dy_NO = dout_NC, .x_NI = mixed_BnC_.view({N, width()})});
    arrival = mixer.backward(ops, scratch, params, grads, dpre_BnX, draw_BnH, heads(dmixed_BnC, 0, prefix_), dy_BSHD,
                             std::move(keys));
  }

  for (int64_t b = 0; b < B && gates(); ++b) {
    ops.linear_backward_weight(
        {.dw_OI = grad.z_CC, .dy_NO = dz_BSC.select(0, b), .x_NI = u_NC.slice(0, b * n + prefix_, suffix_)});
  }
  arrival.finish();
  const Tensor dpre_NX = dpre_BnX.view({N, 3 * width()});
  ops.linear_backward_input({.dx_NI = du_NC, .dy_NO = dpre_NX, .w_OI = w.qkv_XC, .accumulate = false});
  ops.linear_backward_weight({.dw_OI = grad.qkv_XC, .dy_NO = dpre_NX, .x_NI = u_NC});
  if (has_ssm()) {
    ops.linear_backward_input({.dx_NI = du_NC, .dy_NO = draw_BnH.view({N, H}), .w_OI = w.dt_HC, .accumulate = true});
    ops.linear_backward_weight({.dw_OI = grad.dt_HC, .dy_NO = draw_BnH.view({N, H}), .x_NI = u_NC});
  }
  for (int64_t b = 0; b < B && gates(); ++b) {
    ops.linear_backward_input({.dx_NI = du_NC.slice(0, b * n + prefix_, suffix_),
                               .dy_NO = dz_BSC.select(0, b),
                               .w_OI = w.z_CC,
                               .accumulate = true});
  }
  scratch.rewind(mark);
}

// --- Head-parallel
// -----------------------------------------------------------------------------------------------------

// q, k, v and the raw step sizes: each a run of columns over all heads, of which a rank mixes its share.
std::vector<HeadTensor> Mixer::inputs_by_head(const Tensor& pre_BTX, const Tensor& raw_BTH, const Tensor& pre_BnX,
                                              const Tensor& raw_BnH) const {
  const TokenRange all{0, sequence_.layout().tokens()};
  const int64_t share = pre_BTX.size(2) / 3;
  std::vector<HeadTensor> list;
  for (int64_t i = 0; i < 3; ++i) {
    list.push_back({all, pre_BTX.slice(2, i * share, share), pre_BnX.slice(2, i * width(), width())});
  }
  if (has_ssm()) list.push_back({all, raw_BTH, raw_BnH});
  return list;
}

// Attention outputs, and SSM outputs, which still have to pass gate and norm. By heads: all tokens before and from the
// TransPoint on.
std::vector<HeadTensor> Mixer::outputs_by_head(const Tensor& o_heads, const Tensor& y_heads, const Tensor& o_BPC,
                                               const Tensor& y_BSHD) const {
  const int64_t T = sequence_.layout().tokens(), P = layer_.transpoint();
  std::vector<HeadTensor> list;
  if (P > 0) list.push_back({{0, P}, o_heads, o_BPC});
  if (P < T) {
    // A rank without SSM tokens has no rows of them.
    const Tensor y_BSC = suffix_ > 0 ? y_BSHD.view({batch_, suffix_, width()}) : o_BPC.slice(1, 0, 0);
    list.push_back({{P, T}, y_heads, y_BSC});
  }
  return list;
}

SequenceMixerParams Mixer::params_by_head(Ops& ops, Arena& scratch, const MixerParams& w) const {
  if (!head_parallel_) return {w.conv_XW, w.conv_bias_X, w.dt_bias_H, w.A_log_H, w.D_H};
  const int64_t h = heads_ / sequence_.layout().ranks(), share = h * head_dim_, first = sequence_.rank() * h;
  SequenceMixerParams part{.conv_XW = scratch.take({3 * share, w.conv_XW.size(1)}, w.conv_XW.dtype()),
                           .conv_bias_X = scratch.take({3 * share}, w.conv_bias_X.dtype()),
                           .dt_bias_H = w.dt_bias_H.slice(0, first, h),
                           .A_log_H = w.A_log_H.slice(0, first, h),
                           .D_H = w.D_H.slice(0, first, h)};
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t begin = i * width() + first * head_dim_;
    ops.copy({part.conv_XW.slice(0, i * share, share), w.conv_XW.slice(0, begin, share)});
    ops.copy({part.conv_bias_X.slice(0, i * share, share), w.conv_bias_X.slice(0, begin, share)});
  }
  return part;
}

// Where gradients of this rank's share of the heads go: in place, but for the convolution's, whose q, k and v channels
// lie apart.
SequenceMixerParams Mixer::zero_grads_by_head(Ops& ops, Arena& scratch, const MixerParams& grad) const {
  SequenceMixerParams part = params_by_head(ops, scratch, grad);
  if (head_parallel_) ops.fill({part.conv_XW, 0}), ops.fill({part.conv_bias_X, 0});
  return part;
}

void Mixer::add_grads_by_head(Ops& ops, const MixerParams& grad, const SequenceMixerParams& part) const {
  const int64_t share = part.conv_XW.size(0) / 3;
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t begin = i * width() + sequence_.rank() * share;
    ops.add({grad.conv_XW.slice(0, begin, share), part.conv_XW.slice(0, i * share, share)});
    ops.add({grad.conv_bias_X.slice(0, begin, share), part.conv_bias_X.slice(0, i * share, share)});
  }
}

}  // namespace tmamba
