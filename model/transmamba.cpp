#include "model/transmamba.h"

namespace tmamba {

TransMamba::TransMamba(const ModelConfig& config, const ParameterTable& table, ModelRanks& ranks, DType dtype,
                       Arena& saved)
    : config_(config),
      table_(table),
      ranks_(ranks),
      dtype_(dtype),
      all_rows_(ranks.batch() * ranks.local_tokens()),
      rows_(ranks.tensor().rows()) {
  const int64_t C = config.dim;
  const int64_t heads = table.find("layers.0.mixer.A_log").local_rows;
  const int64_t ffn = table.find("layers.0.mlp.down.weight").local_cols;
  auto rows = [&] { return saved.take({rows_.size(), C}, dtype); };
  auto all_rows = [&] { return saved.take({all_rows_, C}, dtype); };
  auto stats = [&] { return saved.take({rows_.size()}, accumulate_type(dtype)); };
  layers_.reserve(static_cast<size_t>(config.layers));
  for (int i = 0; i < static_cast<int>(config.layers); ++i) {
    layers_.push_back({.h_rC = rows(),
                       .u_NC = all_rows(),
                       .rstd_r = stats(),
                       .h_mid_rC = rows(),
                       .u_mid_NC = all_rows(),
                       .rstd_mid_r = stats(),
                       .mixer = Mixer(config, i, ranks, heads, dtype, saved),
                       .mlp = Mlp(all_rows_, ffn, dtype, saved)});
  }
  h_out_rC_ = rows(), u_out_NC_ = all_rows(), rstd_out_r_ = stats();
}

void TransMamba::norm(Ops& ops, const Tensor& u_NC, const Tensor& rstd_r, const Tensor& sum_rC, const Tensor& x_rC,
                      const Tensor& delta_NC, const Tensor& w_C) {
  ranks_.tensor().scatter_sum(mine(delta_NC), delta_NC);
  ops.rmsnorm_forward(mine(u_NC), rstd_r, sum_rC, x_rC, mine(delta_NC), w_C, config_.norm_eps);
  ranks_.tensor().gather_rows(u_NC, mine(u_NC));
}

void TransMamba::layers_forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch) {
  const size_t mark = scratch.used();
  const Tensor out_NC =
      scratch.take({all_rows_, config_.dim}, dtype_);  // what the layer before adds, summed over ranks later
  auto weight = [&](int64_t i, const char* name) { return table_.view(params, str("layers.", i, name)); };
  ops.embedding_forward(out_NC, table_.view(params, "embedding.weight"), batch.tokens_Bn.view({all_rows_}),
                        vocab_begin());
  ranks_.tensor().scatter_sum(mine(out_NC), out_NC);
  ops.copy(layers_[0].h_rC, mine(out_NC));
  for (int64_t i = 0; i < config_.layers; ++i) {
    Layer& layer = layers_[static_cast<size_t>(i)];
    if (i == 0) {
      ops.rmsnorm_forward(mine(layer.u_NC), layer.rstd_r, {}, layer.h_rC, {}, weight(i, ".mixer.norm.weight"),
                          config_.norm_eps);
      ranks_.tensor().gather_rows(layer.u_NC, mine(layer.u_NC));
    } else {
      norm(ops, layer.u_NC, layer.rstd_r, layer.h_rC, layers_[static_cast<size_t>(i - 1)].h_mid_rC, out_NC,
           weight(i, ".mixer.norm.weight"));
    }
    layer.mixer.forward(ops, scratch, MixerParams::of(table_, params, config_, i), out_NC, layer.u_NC);
    norm(ops, layer.u_mid_NC, layer.rstd_mid_r, layer.h_mid_rC, layer.h_rC, out_NC, weight(i, ".mlp.norm.weight"));
    layer.mlp.forward(ops, MlpParams::of(table_, params, i), out_NC, layer.u_mid_NC);
  }
  norm(ops, u_out_NC_, rstd_out_r_, h_out_rC_, layers_.back().h_mid_rC, out_NC, table_.view(params, "norm.weight"));
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
  ops.embedding_backward(table_.view(grads, "embedding.weight"), dh_NC, batch.tokens_Bn.view({all_rows_}),
                         vocab_begin());
  on_bucket(0);
  scratch.rewind(mark);
}

// dh += what flows back through the norm `name` of x, from this rank's rows of the sum of du over ranks.
void TransMamba::norm_backward(Ops& ops, const Tensor& dh_NC, const Tensor& du_NC, const Tensor& x_rC,
                               const Tensor& rstd_r, const std::string& name, const Tensor& params, const Tensor& grads,
                               bool add_residual) {
  ranks_.tensor().scatter_sum(mine(du_NC), du_NC);
  ops.rmsnorm_backward(mine(dh_NC), table_.view(grads, name), mine(du_NC), x_rC, rstd_r, table_.view(params, name),
                       add_residual ? ConstTensor(mine(dh_NC)) : ConstTensor());
}

void TransMamba::layer_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads, int64_t i,
                                Tensor dh_NC) {
  const size_t mark = scratch.used();
  Layer& layer = layers_[static_cast<size_t>(i)];
  const Tensor du_NC = scratch.take({all_rows_, config_.dim}, dtype_);
  ranks_.tensor().gather_rows(dh_NC, mine(dh_NC));
  layer.mlp.backward(ops, scratch, MlpParams::of(table_, params, i), MlpParams::of(table_, grads, i), du_NC, dh_NC,
                     layer.u_mid_NC);
  norm_backward(ops, dh_NC, du_NC, layer.h_mid_rC, layer.rstd_mid_r, str("layers.", i, ".mlp.norm.weight"), params,
                grads, true);
  ranks_.tensor().gather_rows(dh_NC, mine(dh_NC));
  layer.mixer.backward(ops, scratch, MixerParams::of(table_, params, config_, i),
                       MixerParams::of(table_, grads, config_, i), du_NC, dh_NC, layer.u_NC);
  norm_backward(ops, dh_NC, du_NC, layer.h_rC, layer.rstd_r, str("layers.", i, ".mixer.norm.weight"), params, grads,
                true);
  scratch.rewind(mark);
}

}  // namespace tmamba
