#include "model/transmamba.h"

#include <algorithm>

#include "kernels/base/trace_range.h"

namespace tmamba {

TransMamba::TransMamba(const ModelConfig& config, const ParameterTable& table, ModelRanks& ranks, DType dtype,
                       Arena& saved, Recompute level)
    : config_(config),
      table_(table),
      ranks_(ranks),
      dtype_(dtype),
      level_(level),
      all_rows_(ranks.batch() * ranks.local_tokens()),
      rows_(ranks.tensor().rows()) {
  const int64_t heads = table.find("layers.0.mixer.out.weight").local_cols / config.head_dim();
  layers_.reserve(static_cast<size_t>(config.layers));
  for (int i = 0; i < static_cast<int>(config.layers); ++i) {
    layers_.push_back(
        {.mixer = Mixer(config, i, ranks, heads, dtype, level), .mlp = Mlp(table, all_rows_, dtype, level)});
    allocate(layers_.back(), AllocationPlan::saved(level, saved));
  }
  output_norm_ = {.h_rC = saved.take({rows_.size(), config.dim}, dtype),
                  .u_NC = saved.take({all_rows_, config.dim}, dtype),
                  .rstd_r = saved.take({rows_.size()}, accumulate_type(dtype))};
  const size_t shared = saved.used();
  size_t end = shared;
  for (Layer& layer : layers_) {
    saved.rewind(shared);
    allocate(layer, AllocationPlan::shared(level, saved));
    end = std::max(end, saved.used());
  }
  saved.rewind(end);
}

void TransMamba::allocate(Layer& layer, const AllocationPlan& plan) const {
  const int64_t r = rows_.size(), N = all_rows_, C = config_.dim;
  plan.save(layer.mixer_norm.h_rC, {r, C}, dtype_);
  plan.save(layer.mixer_norm.rstd_r, {r}, accumulate_type(dtype_));
  // The first of the shared tensors, so at one address for all layers: the next layer's forward reads it.
  plan.save_before(Recompute::all, layer.mlp_norm.h_rC, {r, C}, dtype_);
  plan.save_before(Recompute::all, layer.mlp_norm.rstd_r, {r}, accumulate_type(dtype_));
  const size_t halves = plan.mark();
  plan.save_before(Recompute::cheap, layer.mixer_norm.u_NC, {N, C}, dtype_);
  layer.mixer.allocate(plan);
  // At Recompute::all backward needs both halves of a layer at once; else it needs the MLP's, then the mixer's.
  if (!recomputes(level_, Recompute::all)) plan.reuse_from(halves);
  plan.save_before(Recompute::cheap, layer.mlp_norm.u_NC, {N, C}, dtype_);
  layer.mlp.allocate(plan);
}

void TransMamba::add_and_normalize(Ops& ops, const Norm& norm, const Tensor& w_C, const Tensor& x_rC,
                                   const Tensor& delta_NC) {
  ranks_.tensor().scatter_sum(own_rows(delta_NC), delta_NC);
  ops.rmsnorm_forward({.y_NC = own_rows(norm.u_NC),
                       .rstd_N = norm.rstd_r,
                       .sum_NC = norm.h_rC,
                       .x_NC = x_rC,
                       .delta_NC = own_rows(delta_NC),
                       .w_C = w_C,
                       .eps = config_.norm_eps});
  ranks_.tensor().gather_rows(norm.u_NC, own_rows(norm.u_NC));
}

void TransMamba::normalize(Ops& ops, const Norm& norm, const Tensor& w_C) {
  ops.rmsnorm_forward(
      {.y_NC = own_rows(norm.u_NC), .rstd_N = norm.rstd_r, .x_NC = norm.h_rC, .w_C = w_C, .eps = config_.norm_eps});
  ranks_.tensor().gather_rows(norm.u_NC, own_rows(norm.u_NC));
}

void TransMamba::layers_forward(Ops& ops, Arena& scratch, const ModelParams& w, const TokenBatch& batch) {
  const size_t mark = scratch.used();
  // The output of the previous embedding, mixer or MLP; the next norm sums it over ranks and adds it to the residual.
  const Tensor out_NC = scratch.take({all_rows_, config_.dim}, dtype_);
  ops.embedding_forward({.y_NC = out_NC,
                         .table_VC = w.embedding_VC,
                         .tokens_N = batch.tokens_Bn.view({all_rows_}),
                         .vocab_begin = vocab_begin()});
  ranks_.tensor().scatter_sum(own_rows(out_NC), out_NC);
  ops.copy({layers_[0].mixer_norm.h_rC, own_rows(out_NC)});
  for (size_t i = 0; i < layers_.size(); ++i) {
    const TraceRange trace("layer forward", static_cast<int64_t>(i));
    Layer& layer = layers_[i];
    const LayerParams& p = w.layers[i];
    if (i == 0) {
      normalize(ops, layer.mixer_norm, p.mixer_norm_C);
    } else {
      add_and_normalize(ops, layer.mixer_norm, p.mixer_norm_C, layers_[i - 1].mlp_norm.h_rC, out_NC);
    }
    layer.mixer.forward(ops, scratch, p.mixer, out_NC, layer.mixer_norm.u_NC);
    add_and_normalize(ops, layer.mlp_norm, p.mlp_norm_C, layer.mixer_norm.h_rC, out_NC);
    layer.mlp.forward(ops, p.mlp, out_NC, layer.mlp_norm.u_NC);
  }
  add_and_normalize(ops, output_norm_, w.norm_C, layers_.back().mlp_norm.h_rC, out_NC);
  scratch.rewind(mark);
}

HeadLoss TransMamba::head_args(const ModelParams& w, const TokenBatch& batch) const {
  return {.x_NC = output_norm_.u_NC,
          .head_VC = w.head_VC,
          .vocab = config_.vocab,
          .vocab_begin = vocab_begin(),
          .targets_N = batch.targets_Bn.view({all_rows_}),
          .unit = ranks_.layout().spec().canonical ? ranks_.layout().alignment().unit : 0,
          .dx_NC = {},
          .dhead_VC = {},
          .grad_scale = 0};
}

void TransMamba::forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch,
                         const LossSums& sums) {
  const ModelParams w = ModelParams::of(table_, params, config_);
  layers_forward(ops, scratch, w, batch);
  head_loss(ops, scratch, ranks_.tensor(), head_args(w, batch), sums);
}

void TransMamba::forward_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads,
                                  const TokenBatch& batch, double grad_scale, const LossSums& sums,
                                  const std::function<void(int)>& on_bucket) {
  const size_t mark = scratch.used();
  const ModelParams w = ModelParams::of(table_, params, config_), grad = ModelParams::of(table_, grads, config_);
  layers_forward(ops, scratch, w, batch);

  // The gradient of the residual stream. Only this rank's rows are valid.
  const Tensor dh_NC = scratch.take({all_rows_, config_.dim}, dtype_);
  const size_t head_mark = scratch.used();
  const Tensor du_NC = scratch.take({all_rows_, config_.dim}, dtype_);
  HeadLoss head = head_args(w, batch);
  head.dx_NC = du_NC, head.dhead_VC = grad.head_VC, head.grad_scale = grad_scale;
  head_loss(ops, scratch, ranks_.tensor(), head, sums);
  norm_backward(ops, output_norm_, w.norm_C, grad.norm_C, dh_NC, du_NC, false);
  scratch.rewind(head_mark);
  on_bucket(static_cast<int>(config_.layers) + 1);
  for (size_t i = layers_.size(); i-- > 0;) {
    const TraceRange trace("layer backward", static_cast<int64_t>(i));
    layer_backward(ops, scratch, w.layers[i], grad.layers[i], layers_[i], dh_NC);
    on_bucket(static_cast<int>(i) + 1);
  }
  ranks_.tensor().gather_rows(dh_NC, own_rows(dh_NC));
  ops.embedding_backward({.dtable_VC = grad.embedding_VC,
                          .dy_NC = dh_NC,
                          .tokens_N = batch.tokens_Bn.view({all_rows_}),
                          .vocab_begin = vocab_begin()});
  on_bucket(0);
  scratch.rewind(mark);
}

void TransMamba::norm_backward(Ops& ops, const Norm& norm, const Tensor& w_C, const Tensor& dw_C, const Tensor& dh_NC,
                               const Tensor& du_NC, bool add_residual) {
  ranks_.tensor().scatter_sum(own_rows(du_NC), du_NC);
  ops.rmsnorm_backward({.dx_NC = own_rows(dh_NC),
                        .dw_C = dw_C,
                        .dy_NC = own_rows(du_NC),
                        .x_NC = norm.h_rC,
                        .rstd_N = norm.rstd_r,
                        .w_C = w_C,
                        .dresidual_NC = add_residual ? ConstTensor(own_rows(dh_NC)) : ConstTensor()});
}

// Recomputes the mixer's activations that backward needs and forward did not save.
void TransMamba::recompute_mixer(Ops& ops, Arena& scratch, const LayerParams& w, Layer& layer) {
  if (level_ == Recompute::none) return;
  normalize(ops, layer.mixer_norm, w.mixer_norm_C);
  layer.mixer.recompute(ops, scratch, w.mixer, layer.mixer_norm.u_NC);
}

// The same for the MLP; at Recompute::all after recompute_mixer(). out_NC: a buffer for the mixer's output.
void TransMamba::recompute_mlp(Ops& ops, const LayerParams& w, Layer& layer, const Tensor& out_NC) {
  if (level_ == Recompute::none) return;
  if (recomputes(level_, Recompute::all)) {
    layer.mixer.project_out(ops, w.mixer, out_NC);
    add_and_normalize(ops, layer.mlp_norm, w.mlp_norm_C, layer.mixer_norm.h_rC, out_NC);
  } else {
    normalize(ops, layer.mlp_norm, w.mlp_norm_C);
  }
  layer.mlp.recompute(ops, w.mlp, layer.mlp_norm.u_NC);
}

void TransMamba::layer_backward(Ops& ops, Arena& scratch, const LayerParams& w, const LayerParams& grad, Layer& layer,
                                const Tensor& dh_NC) {
  const size_t mark = scratch.used();
  const bool both_halves = recomputes(level_, Recompute::all);
  const Tensor du_NC = scratch.take({all_rows_, config_.dim}, dtype_);
  if (both_halves) recompute_mixer(ops, scratch, w, layer);
  recompute_mlp(ops, w, layer, du_NC);
  ranks_.tensor().gather_rows(dh_NC, own_rows(dh_NC));
  layer.mlp.backward(ops, scratch, w.mlp, grad.mlp, du_NC, dh_NC, layer.mlp_norm.u_NC);
  norm_backward(ops, layer.mlp_norm, w.mlp_norm_C, grad.mlp_norm_C, dh_NC, du_NC, true);
  if (!both_halves) recompute_mixer(ops, scratch, w, layer);
  ranks_.tensor().gather_rows(dh_NC, own_rows(dh_NC));
  layer.mixer.backward(ops, scratch, w.mixer, grad.mixer, du_NC, dh_NC, layer.mixer_norm.u_NC);
  norm_backward(ops, layer.mixer_norm, w.mixer_norm_C, grad.mixer_norm_C, dh_NC, du_NC, true);
  scratch.rewind(mark);
}

}  // namespace tmamba
