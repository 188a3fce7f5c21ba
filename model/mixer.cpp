#include "model/mixer.h"

#include <utility>

namespace tmamba {

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
    sequence_mixer_.emplace(config, ranks.whole().layout().layer(layer), Transport{}, ranks.whole(), batch_,
                            exact_div(heads_, ranks.layout().ranks()), dtype, level);
  } else {
    sequence_mixer_.emplace(config, layer_, ranks.transport(layer), sequence_, batch_, heads_, dtype, level);
  }
}

void Mixer::allocate(const AllocationPlan& plan) {
  const int64_t B = batch_, P = prefix_, S = suffix_, C = width();
  // Attention outputs are saved where they were computed: in a head-parallel layer by heads.
  const auto save_o = [&](Tensor& x, int64_t rows) {
    if (head_parallel_) {
      plan.save_before(Recompute::all, x, {B, rows, C}, dtype_);
    } else {
      plan.save(x, {B, rows, C}, dtype_);
    }
  };
  if (S == 0) {
    save_o(mixed_BnC_, P);
  } else {
    plan.save_before(Recompute::cheap, mixed_BnC_, {B, tokens_, C}, dtype_);
    if (separate_o()) save_o(o_BPC_, P);
    if (config_.z_gate) plan.save_before(Recompute::all, z_BSC_, {B, S, C}, dtype_);
    plan.save_before(Recompute::all, y_BSHD_, {B, S, heads_, head_dim_}, dtype_);
    plan.save_before(Recompute::cheap, rstd_BSH_, {B, S, heads_}, acc_);
  }
  if (head_parallel_) {
    const int64_t T = sequence_.layout().tokens(), before = layer_.transpoint(), slice = C / sequence_.layout().ranks();
    plan.save(o_heads_BPC_, {B, before, slice}, dtype_);
    plan.save_before(Recompute::none, y_heads_BSC_, {B, T - before, slice}, dtype_);
  }
  sequence_mixer_->allocate(plan);
  if (!plan.is_shared_pass()) return;
  const auto by_head = [&](const Tensor& x) { return x.split(2, x.size(2) / head_dim_, head_dim_); };
  if (head_parallel_) {
    sequence_mixer_->set_outputs(by_head(o_heads_BPC_), by_head(y_heads_BSC_));
  } else {
    sequence_mixer_->set_outputs(by_head(o_BPC()), y_BSHD_);
  }
}

Tensor Mixer::heads(const Tensor& rows_BnC, int64_t begin, int64_t count) const {
  return rows_BnC.slice(1, begin, count).split(2, heads_, head_dim_);
}

void Mixer::forward(Ops& ops, Arena& scratch, const MixerParams& w, Tensor out_NC, ConstTensor u_NC) {
  const size_t mark = scratch.used();
  SequenceMixer& mixer = *sequence_mixer_;
  const SequenceMixerParams params = params_by_head(ops, scratch, w);
  Pending arrival = project_in(ops, scratch, w, u_NC, false);
  if (head_parallel_) {
    arrival.finish();
    mixer.forward(ops, scratch, params, mixer.begin_forward(scratch));
    sequence_.to_tokens(scratch, outputs_by_head(o_heads_BPC_, y_heads_BSC_, o_BPC(), y_BSHD_)).finish();
  } else {
    mixer.forward(ops, scratch, params, std::move(arrival));
  }
  gate(ops, w);
  project_out(ops, w, out_NC);
  scratch.rewind(mark);
}

void Mixer::recompute(Ops& ops, Arena& scratch, const MixerParams& w, ConstTensor u_NC) {
  if (level_ == Recompute::none) return;
  const bool all = recomputes(level_, Recompute::all);
  const size_t mark = scratch.used();
  const SequenceMixerParams params = params_by_head(ops, scratch, w);
  if (all) project_in(ops, scratch, w, u_NC, true).finish();
  sequence_mixer_->recompute(ops, params);
  if (all && head_parallel_) {
    sequence_.to_tokens(scratch, outputs_by_head(o_heads_BPC_, y_heads_BSC_, o_BPC(), y_BSHD_)).finish();
  }
  gate(ops, w);
  scratch.rewind(mark);
}

// Computes q, k, v, the raw step sizes and z, and starts the exchange that the mixing of tokens needs as soon as its
// inputs are computed. `repeated`: this is recomputation, and the halo is saved from forward.
Pending Mixer::project_in(Ops& ops, Arena& scratch, const MixerParams& w, ConstTensor u_NC, bool repeated) {
  const int64_t B = batch_, n = tokens_, H = heads_;
  SequenceMixer& mixer = *sequence_mixer_;
  const Tensor pre_BnX = head_parallel_ ? scratch.take({B, n, 3 * width()}, dtype_) : mixer.pre_BnX();
  const Tensor raw_BnH = !has_ssm() || !head_parallel_ ? mixer.raw_BnH() : scratch.take({B, n, H}, dtype_);
  Pending arrival;
  project_qkv(ops, w, pre_BnX, u_NC);
  if (!head_parallel_ && !repeated) arrival = mixer.begin_forward(scratch);
  if (has_ssm()) project_dt(ops, w, raw_BnH, u_NC);
  if (head_parallel_) {
    arrival = sequence_.to_heads(scratch, inputs_by_head(mixer.pre_BnX(), mixer.raw_BnH(), pre_BnX, raw_BnH));
  }
  project_z(ops, w, z_BSC_, u_NC);
  return arrival;
}

// Computes the mixed rows from the outputs of both halves.
void Mixer::gate(Ops& ops, const MixerParams& w) {
  if (separate_o()) ops.copy({mixed_BnC_.slice(1, 0, prefix_), o_BPC_});
  if (suffix_ == 0) return;
  gate_and_norm(ops, w, mixed_BnC_.slice(1, prefix_, suffix_), rstd_BSH_, y_BSHD_, z_BSC_, config_.norm_eps);
}

void Mixer::project_out(Ops& ops, const MixerParams& w, Tensor out_NC) const {
  tmamba::project_out(ops, w, out_NC, mixed_BnC_);
}

void Mixer::backward(Ops& ops, Arena& scratch, const MixerParams& w, const MixerParams& grad, Tensor du_NC,
                     ConstTensor dout_NC, ConstTensor u_NC) {
  const size_t mark = scratch.used();
  const int64_t B = batch_, n = tokens_, H = heads_, D = head_dim_, N = B * n;
  const InputGradients d{.dpre_BnX = scratch.take({B, n, 3 * width()}, dtype_),
                         .draw_BnH = has_ssm() ? scratch.take({B, n, H}, dtype_) : Tensor(),
                         .dz_BSC = has_gate() ? scratch.take({B, suffix_, width()}, dtype_) : Tensor()};
  const Tensor dmixed_BnC = scratch.take({B, n, width()}, dtype_);
  const Tensor dy_BSHD = suffix_ > 0 ? scratch.take({B, suffix_, H, D}, dtype_) : Tensor();
  const SequenceMixerParams params = params_by_head(ops, scratch, w), grads = zero_grads_by_head(ops, scratch, grad);

  SequenceMixer::Keys keys = sequence_mixer_->begin_backward(scratch);
  ops.linear_backward_input(
      {.dx_NI = dmixed_BnC.view({N, width()}), .dy_NO = dout_NC, .w_OI = w.out_CC, .accumulate = false});
  if (suffix_ > 0) {
    const auto by_head = [&](const Tensor& x) { return has_gate() ? x.split(2, H, D) : Tensor(); };
    ops.gated_norm_backward({.dy_BTHD = dy_BSHD,
                             .dz_BTHD = by_head(d.dz_BSC),
                             .dw_HD = grad.out_norm_HD,
                             .dout_BTHD = heads(dmixed_BnC, prefix_, suffix_),
                             .y_BTHD = y_BSHD_,
                             .z_BTHD = by_head(z_BSC_),
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
    sequence_mixer_
        ->backward(ops, scratch, params, grads,
                   {dpre_BTX, draw_BTH, dout_BThD.slice(1, 0, P), dout_BThD.slice(1, P, T - P)}, std::move(keys))
        .finish();
    add_grads_by_head(ops, grad, grads);
    arrival = sequence_.to_tokens(scratch, inputs_by_head(dpre_BTX, draw_BTH, d.dpre_BnX, d.draw_BnH));
  } else {
    ops.linear_backward_weight({.dw_OI = grad.out_CC, .dy_NO = dout_NC, .x_NI = mixed_BnC_.view({N, width()})});
    arrival = sequence_mixer_->backward(
        ops, scratch, params, grads, {d.dpre_BnX, d.draw_BnH, heads(dmixed_BnC, 0, prefix_), dy_BSHD}, std::move(keys));
  }
  project_in_backward(ops, w, grad, d, std::move(arrival), du_NC, u_NC);
  scratch.rewind(mark);
}

// The gradients of q, k, v and of the step sizes are complete when `arrival` is finished; those of z are before that.
void Mixer::project_in_backward(Ops& ops, const MixerParams& w, const MixerParams& grad, const InputGradients& d,
                                Pending arrival, Tensor du_NC, ConstTensor u_NC) const {
  const int64_t B = batch_, n = tokens_, N = B * n;
  for (int64_t b = 0; b < B && has_gate(); ++b) {
    ops.linear_backward_weight(
        {.dw_OI = grad.z_CC, .dy_NO = d.dz_BSC.select(0, b), .x_NI = u_NC.slice(0, b * n + prefix_, suffix_)});
  }
  arrival.finish();
  const Tensor dpre_NX = d.dpre_BnX.view({N, 3 * width()});
  ops.linear_backward_input({.dx_NI = du_NC, .dy_NO = dpre_NX, .w_OI = w.qkv_XC, .accumulate = false});
  ops.linear_backward_weight({.dw_OI = grad.qkv_XC, .dy_NO = dpre_NX, .x_NI = u_NC});
  if (has_ssm()) {
    const Tensor draw_NH = d.draw_BnH.view({N, heads_});
    ops.linear_backward_input({.dx_NI = du_NC, .dy_NO = draw_NH, .w_OI = w.dt_HC, .accumulate = true});
    ops.linear_backward_weight({.dw_OI = grad.dt_HC, .dy_NO = draw_NH, .x_NI = u_NC});
  }
  for (int64_t b = 0; b < B && has_gate(); ++b) {
    ops.linear_backward_input({.dx_NI = du_NC.slice(0, b * n + prefix_, suffix_),
                               .dy_NO = d.dz_BSC.select(0, b),
                               .w_OI = w.z_CC,
                               .accumulate = true});
  }
}

// --- Head-parallel -------------------------------------------------------------------------------------------------

// q, k, v and the raw step sizes. Each is a range of columns over all heads, of which a rank mixes its slice.
std::vector<HeadTensor> Mixer::inputs_by_head(const Tensor& pre_BTX, const Tensor& raw_BTH, const Tensor& pre_BnX,
                                              const Tensor& raw_BnH) const {
  const TokenRange all{0, sequence_.layout().tokens()};
  const int64_t slice = pre_BTX.size(2) / 3;
  std::vector<HeadTensor> list;
  for (int64_t i = 0; i < 3; ++i) {
    list.push_back({all, pre_BTX.slice(2, i * slice, slice), pre_BnX.slice(2, i * width(), width())});
  }
  if (has_ssm()) list.push_back({all, raw_BTH, raw_BnH});
  return list;
}

// Attention outputs, and SSM outputs before gate and norm. By heads: all tokens before the TransPoint and from it on.
std::vector<HeadTensor> Mixer::outputs_by_head(const Tensor& o_heads, const Tensor& y_heads, const Tensor& o_BPC,
                                               const Tensor& y_BSHD) const {
  const int64_t T = sequence_.layout().tokens(), P = layer_.transpoint();
  std::vector<HeadTensor> list;
  if (P > 0) list.push_back({{0, P}, o_heads, o_BPC});
  if (P < T) {
    // A rank without SSM tokens contributes no rows.
    const Tensor y_BSC = suffix_ > 0 ? y_BSHD.view({batch_, suffix_, width()}) : o_BPC.slice(1, 0, 0);
    list.push_back({{P, T}, y_heads, y_BSC});
  }
  return list;
}

SequenceMixerParams Mixer::params_by_head(Ops& ops, Arena& scratch, const MixerParams& w) const {
  if (!head_parallel_) return w.sequence();
  const int64_t h = heads_ / sequence_.layout().ranks(), slice = h * head_dim_, first = sequence_.rank() * h;
  const auto of_heads = [&](const Tensor& x_H) { return x_H.dims() == 0 ? Tensor() : x_H.slice(0, first, h); };
  SequenceMixerParams local{.conv_XW = scratch.take({3 * slice, w.conv_XW.size(1)}, w.conv_XW.dtype()),
                            .conv_bias_X = scratch.take({3 * slice}, w.conv_bias_X.dtype()),
                            .dt_bias_H = of_heads(w.dt_bias_H),
                            .A_log_H = of_heads(w.A_log_H),
                            .D_H = of_heads(w.D_H)};
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t begin = i * width() + first * head_dim_;
    ops.copy({local.conv_XW.slice(0, i * slice, slice), w.conv_XW.slice(0, begin, slice)});
    ops.copy({local.conv_bias_X.slice(0, i * slice, slice), w.conv_bias_X.slice(0, begin, slice)});
  }
  return local;
}

// Buffers for the gradients of this rank's slice of the heads: views of `grad`, except for the convolution, whose q, k
// and v channels are not adjacent there.
SequenceMixerParams Mixer::zero_grads_by_head(Ops& ops, Arena& scratch, const MixerParams& grad) const {
  SequenceMixerParams local = params_by_head(ops, scratch, grad);
  if (head_parallel_) ops.fill({local.conv_XW, 0}), ops.fill({local.conv_bias_X, 0});
  return local;
}

void Mixer::add_grads_by_head(Ops& ops, const MixerParams& grad, const SequenceMixerParams& local) const {
  const int64_t slice = local.conv_XW.size(0) / 3;
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t begin = i * width() + sequence_.rank() * slice;
    ops.add({grad.conv_XW.slice(0, begin, slice), local.conv_XW.slice(0, i * slice, slice)});
    ops.add({grad.conv_bias_X.slice(0, begin, slice), local.conv_bias_X.slice(0, i * slice, slice)});
  }
}

}  // namespace tmamba
