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
  const int64_t heads = table.find("layers.0.mixer.A_log").local_rows;
  const int64_t ffn = table.find("layers.0.mlp.down.weight").local_cols;
  layers_.reserve(static_cast<size_t>(config.layers));
  for (int i = 0; i < static_cast<int>(config.layers); ++i) {
    layers_.push_back(
        {.mixer = Mixer(config, i, ranks, heads, dtype, level), .mlp = Mlp(all_rows_, ffn, dtype, level)});
    place(layers_.back(), AllocationPlan::kept(level, saved));
  }
  h_out_rC_ = saved.take({rows_.size(), config.dim}, dtype);
  u_out_NC_ = saved.take({all_rows_, config.dim}, dtype);
  rstd_out_r_ = saved.take({rows_.size()}, accumulate_type(dtype));
  const size_t shared = saved.used();
  size_t end = shared;
  for (Layer& layer : layers_) {
    saved.rewind(shared);
    place(layer, AllocationPlan::shared(level, saved));
    end = std::max(end, saved.used());
  }
  saved.rewind(end);
}

void TransMamba::place(Layer& layer, const AllocationPlan& place) const {
  const int64_t r = rows_.size(), N = all_rows_, C = config_.dim;
  place.keep(layer.h_rC, {r, C}, dtype_);
  place.keep(layer.rstd_r, {r}, accumulate_type(dtype_));
  // First of the shared ones, so at one address for all layers: the next layer's residual starts from it.
  place.keep_below(Recompute::all, layer.h_mid_rC, {r, C}, dtype_);
  place.keep_below(Recompute::all, layer.rstd_mid_r, {r}, accumulate_type(dtype_));
  const size_t halves = place.mark();
  place.keep_below(Recompute::cheap, layer.u_NC, {N, C}, dtype_);
  layer.mixer.place(place);
  // Computed again as a whole, a layer has both halves at once; else its MLP is done with before its mixer.
  if (level_ < Recompute::all) place.reuse_from(halves);
  place.keep_below(Recompute::cheap, layer.u_mid_NC, {N, C}, dtype_);
  layer.mlp.place(place);
}

void TransMamba::add_norm(Ops& ops, const Tensor& u_NC, const Tensor& rstd_r, const Tensor& sum_rC, const Tensor& x_rC,
                          const Tensor& delta_NC, const Tensor& w_C) {
  ranks_.tensor().scatter_sum(mine(delta_NC), delta_NC);
  ops.rmsnorm_forward({.y_NC = mine(u_NC),
                       .rstd_N = rstd_r,
                       .sum_NC = sum_rC,
                       .x_NC = x_rC,
                       .delta_NC = mine(delta_NC),
                       .w_C = w_C,
                       .eps = config_.norm_eps});
  ranks_.tensor().gather_rows(u_NC, mine(u_NC));
}

void TransMamba::norm(Ops& ops, const Tensor& u_NC, const Tensor& rstd_r, const Tensor& x_rC, const Tensor& w_C) {
  ops.rmsnorm_forward({.y_NC = mine(u_NC), .rstd_N = rstd_r, .x_NC = x_rC, .w_C = w_C, .eps = config_.norm_eps});
  ranks_.tensor().gather_rows(u_NC, mine(u_NC));
}

void TransMamba::layers_forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch) {
  const size_t mark = scratch.used();
  const Tensor out_NC =
      scratch.take({all_rows_, config_.dim}, dtype_);  // what the layer before adds, summed over ranks later
  auto weight = [&](int64_t i, const char* name) { return table_.view(params, str("layers.", i, name)); };
  ops.embedding_forward({.y_NC = out_NC,
                         .table_VC = table_.view(params, "embedding.weight"),
                         .tokens_N = batch.tokens_Bn.view({all_rows_}),
                         .vocab_begin = vocab_begin()});
  ranks_.tensor().scatter_sum(mine(out_NC), out_NC);
  ops.copy({layers_[0].h_rC, mine(out_NC)});
  for (int64_t i = 0; i < config_.layers; ++i) {
    const TraceRange trace("layer forward", i);
    Layer& layer = layers_[static_cast<size_t>(i)];
    if (i == 0) {
      norm(ops, layer.u_NC, layer.rstd_r, layer.h_rC, weight(i, ".mixer.norm.weight"));
    } else {
      add_norm(ops, layer.u_NC, layer.rstd_r, layer.h_rC, layers_[static_cast<size_t>(i - 1)].h_mid_rC, out_NC,
               weight(i, ".mixer.norm.weight"));
    }
    layer.mixer.forward(ops, scratch, MixerParams::of(table_, params, config_, i), out_NC, layer.u_NC);
    add_norm(ops, layer.u_mid_NC, layer.rstd_mid_r, layer.h_mid_rC, layer.h_rC, out_NC, weight(i, ".mlp.norm.weight"));
    layer.mlp.forward(ops, MlpParams::of(table_, params, i), out_NC, layer.u_mid_NC);
  }
  add_norm(ops, u_out_NC_, rstd_out_r_, h_out_rC_, layers_.back().h_mid_rC, out_NC, table_.view(params, "norm.weight"));
  scratch.rewind(mark);
}

HeadLoss TransMamba::head_args(const Tensor& params, const TokenBatch& batch) const {
  return {.x_NC = u_out_NC_,
          .head_VC = table_.view(params, config_.tied_head ? "embedding.weight" : "head.weight"),
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
  layers_forward(ops, scratch, params, batch);
  head_loss(ops, scratch, ranks_.tensor(), head_args(params, batch), sums);
}

void TransMamba::forward_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads,
                                  const TokenBatch& batch, double grad_scale, const LossSums& sums,
                                  const std::function<void(int)>& on_bucket) {
  const size_t mark = scratch.used();
  layers_forward(ops, scratch, params, batch);

  const Tensor dh_NC =
      scratch.take({all_rows_, config_.dim}, dtype_);  // of the residual stream; this rank's rows count
  const size_t head_mark = scratch.used();
  const Tensor du_NC = scratch.take({all_rows_, config_.dim}, dtype_);
  HeadLoss head = head_args(params, batch);
  head.dx_NC = du_NC;
  head.dhead_VC = table_.view(grads, config_.tied_head ? "embedding.weight" : "head.weight");
  head.grad_scale = grad_scale;
  head_loss(ops, scratch, ranks_.tensor(), head, sums);
  norm_backward(ops, dh_NC, du_NC, h_out_rC_, rstd_out_r_, "norm.weight", params, grads, false);
  scratch.rewind(head_mark);
  on_bucket(static_cast<int>(config_.layers) + 1);
  for (int64_t i = config_.layers - 1; i >= 0; --i) {
    layer_backward(ops, scratch, params, grads, i, dh_NC);
    on_bucket(static_cast<int>(i) + 1);
  }
  ranks_.tensor().gather_rows(dh_NC, mine(dh_NC));
  ops.embedding_backward({.dtable_VC = table_.view(grads, "embedding.weight"),
                          .dy_NC = dh_NC,
                          .tokens_N = batch.tokens_Bn.view({all_rows_}),
                          .vocab_begin = vocab_begin()});
  on_bucket(0);
  scratch.rewind(mark);
}

// dh += what flows back through the norm `name` of x, from this rank's rows of the sum of du over ranks.
void TransMamba::norm_backward(Ops& ops, const Tensor& dh_NC, const Tensor& du_NC, const Tensor& x_rC,
                               const Tensor& rstd_r, const std::string& name, const Tensor& params, const Tensor& grads,
                               bool add_residual) {
  ranks_.tensor().scatter_sum(mine(du_NC), du_NC);
  ops.rmsnorm_backward({.dx_NC = mine(dh_NC),
                        .dw_C = table_.view(grads, name),
                        .dy_NC = mine(du_NC),
                        .x_NC = x_rC,
                        .rstd_N = rstd_r,
                        .w_C = table_.view(params, name),
                        .dresidual_NC = add_residual ? ConstTensor(mine(dh_NC)) : ConstTensor()});
}

// What backward of the mixer needs and forward did not keep.
void TransMamba::recompute_mixer(Ops& ops, Arena& scratch, const Tensor& params, int64_t i) {
  if (level_ == Recompute::none) return;
  Layer& layer = layers_[static_cast<size_t>(i)];
  norm(ops, layer.u_NC, layer.rstd_r, layer.h_rC, table_.view(params, str("layers.", i, ".mixer.norm.weight")));
  layer.mixer.recompute(ops, scratch, MixerParams::of(table_, params, config_, i), layer.u_NC);
}

// The same for the MLP, at Recompute::all behind recompute_mixer(). out_NC: room for the mixer's output.
void TransMamba::recompute_mlp(Ops& ops, const Tensor& params, int64_t i, const Tensor& out_NC) {
  if (level_ == Recompute::none) return;
  Layer& layer = layers_[static_cast<size_t>(i)];
  const Tensor w_C = table_.view(params, str("layers.", i, ".mlp.norm.weight"));
  if (level_ == Recompute::all) {
    layer.mixer.project_out(ops, MixerParams::of(table_, params, config_, i), out_NC);
    add_norm(ops, layer.u_mid_NC, layer.rstd_mid_r, layer.h_mid_rC, layer.h_rC, out_NC, w_C);
  } else {
    norm(ops, layer.u_mid_NC, layer.rstd_mid_r, layer.h_mid_rC, w_C);
  }
  layer.mlp.recompute(ops, MlpParams::of(table_, params, i), layer.u_mid_NC);
}

void TransMamba::layer_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads, int64_t i,
                                Tensor dh_NC) {
  const TraceRange trace("layer backward", i);
  const size_t mark = scratch.used();
  Layer& layer = layers_[static_cast<size_t>(i)];
  const Tensor du_NC = scratch.take({all_rows_, config_.dim}, dtype_);
  if (level_ == Recompute::all) recompute_mixer(ops, scratch, params, i);
  recompute_mlp(ops, params, i, du_NC);
  ranks_.tensor().gather_rows(dh_NC, mine(dh_NC));
  layer.mlp.backward(ops, scratch, MlpParams::of(table_, params, i), MlpParams::of(table_, grads, i), du_NC, dh_NC,
                     layer.u_mid_NC);
  norm_backward(ops, dh_NC, du_NC, layer.h_mid_rC, layer.rstd_mid_r, str("layers.", i, ".mlp.norm.weight"), params,
                grads, true);
  if (level_ < Recompute::all) recompute_mixer(ops, scratch, params, i);
  ranks_.tensor().gather_rows(dh_NC, mine(dh_NC));
  layer.mixer.backward(ops, scratch, MixerParams::of(table_, params, config_, i),
                       MixerParams::of(table_, grads, config_, i), du_NC, dh_NC, layer.u_NC);
  norm_backward(ops, dh_NC, du_NC, layer.h_rC, layer.rstd_r, str("layers.", i, ".mixer.norm.weight"), params, grads,
                true);
  scratch.rewind(mark);
}

}  // namespace tmamba
