#include "model/transmamba.h"

namespace tmamba {

TransMamba::TransMamba(const ModelConfig& config, const ParameterTable& table, const std::vector<int64_t>& transpoints,
                       const Shape& shape, Arena& saved)
    : config_(config), table_(table), shape_(shape) {
  const int64_t N = shape.batch * shape.tokens, C = config.dim;
  const DType acc = accumulate_type(shape.dtype);
  const int64_t heads = table.find("layers.0.mixer.A_log").local_rows;
  const int64_t ffn = table.find("layers.0.mlp.down.weight").local_cols;
  auto rows = [&] { return saved.take({N, C}, shape.dtype); };
  auto stats = [&] { return saved.take({N}, acc); };
  layers_.reserve(static_cast<size_t>(config.layers));
  for (int64_t i = 0; i < config.layers; ++i) {
    layers_.push_back({.h_NC = rows(), .u_NC = rows(), .rstd_N = stats(),
                       .h_mid_NC = rows(), .u_mid_NC = rows(), .rstd_mid_N = stats(),
                       .mixer = Mixer(config, transpoints[static_cast<size_t>(i)], shape.batch, shape.tokens, heads, shape.dtype, saved),
                       .mlp = Mlp(N, ffn, shape.dtype, saved)});
  }
  h_out_NC_ = rows(), u_out_NC_ = rows(), rstd_out_N_ = stats();
}

void TransMamba::layers_forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch) {
  const size_t mark = scratch.used();
  const int64_t N = shape_.batch * shape_.tokens;
  const double eps = config_.norm_eps;
  const Tensor out_NC = scratch.take({N, config_.dim}, shape_.dtype);
  ops.embedding_forward(layers_[0].h_NC, table_.view(params, "embedding.weight"), batch.tokens_BT.view({N}), 0);
  for (int64_t i = 0; i < config_.layers; ++i) {
    Layer& layer = layers_[static_cast<size_t>(i)];
    const Tensor norm_w = table_.view(params, str("layers.", i, ".mixer.norm.weight"));
    if (i == 0) {
      ops.rmsnorm_forward(layer.u_NC, layer.rstd_N, {}, layer.h_NC, {}, norm_w, eps);
    } else {  // adds the previous layer's MLP output to the residual stream on the way
      ops.rmsnorm_forward(layer.u_NC, layer.rstd_N, layer.h_NC, layers_[static_cast<size_t>(i - 1)].h_mid_NC, out_NC, norm_w, eps);
    }
    layer.mixer.forward(ops, scratch, MixerParams::of(table_, params, config_, i), out_NC, layer.u_NC);
    ops.rmsnorm_forward(layer.u_mid_NC, layer.rstd_mid_N, layer.h_mid_NC, layer.h_NC, out_NC,
                        table_.view(params, str("layers.", i, ".mlp.norm.weight")), eps);
    layer.mlp.forward(ops, MlpParams::of(table_, params, i), out_NC, layer.u_mid_NC);
  }
  ops.rmsnorm_forward(u_out_NC_, rstd_out_N_, h_out_NC_, layers_.back().h_mid_NC, out_NC, table_.view(params, "norm.weight"), eps);
  scratch.rewind(mark);
}

HeadLoss TransMamba::head_args(const Tensor& params, const TokenBatch& batch) const {
  return {.x_NC = u_out_NC_, .head_VC = table_.view(params, config_.tied_head ? "embedding.weight" : "head.weight"),
          .targets_N = batch.targets_BT.view({shape_.batch * shape_.tokens}), .dx_NC = {}, .dhead_VC = {}, .grad_scale = 0};
}

void TransMamba::forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch, const LossSums& sums) {
  layers_forward(ops, scratch, params, batch);
  head_loss(ops, scratch, head_args(params, batch), sums);
}

void TransMamba::forward_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads,
                                  const TokenBatch& batch, double grad_scale, const LossSums& sums,
                                  const std::function<void(int)>& on_bucket) {
  const size_t mark = scratch.used();
  const int64_t N = shape_.batch * shape_.tokens;
  layers_forward(ops, scratch, params, batch);

  const Tensor dh_NC = scratch.take({N, config_.dim}, shape_.dtype);
  const size_t head_mark = scratch.used();
  const Tensor du_NC = scratch.take({N, config_.dim}, shape_.dtype);
  HeadLoss head = head_args(params, batch);
  head.dx_NC = du_NC;
  head.dhead_VC = table_.view(grads, config_.tied_head ? "embedding.weight" : "head.weight");
  head.grad_scale = grad_scale;
  head_loss(ops, scratch, head, sums);
  ops.rmsnorm_backward(dh_NC, table_.view(grads, "norm.weight"), du_NC, h_out_NC_, rstd_out_N_,
                       table_.view(params, "norm.weight"), {});
  scratch.rewind(head_mark);
  on_bucket(static_cast<int>(config_.layers) + 1);
  for (int64_t i = config_.layers - 1; i >= 0; --i) {
    layer_backward(ops, scratch, params, grads, i, dh_NC);
    on_bucket(static_cast<int>(i) + 1);
  }
  ops.embedding_backward(table_.view(grads, "embedding.weight"), dh_NC, batch.tokens_BT.view({N}), 0);
  on_bucket(0);
  scratch.rewind(mark);
}

void TransMamba::layer_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads, int64_t i,
                                Tensor dh_NC) {
  const size_t mark = scratch.used();
  Layer& layer = layers_[static_cast<size_t>(i)];
  const Tensor du_NC = scratch.take({dh_NC.size(0), config_.dim}, shape_.dtype);
  const std::string mlp_norm = str("layers.", i, ".mlp.norm.weight"), mixer_norm = str("layers.", i, ".mixer.norm.weight");
  layer.mlp.backward(ops, scratch, MlpParams::of(table_, params, i), MlpParams::of(table_, grads, i), du_NC, dh_NC, layer.u_mid_NC);
  ops.rmsnorm_backward(dh_NC, table_.view(grads, mlp_norm), du_NC, layer.h_mid_NC, layer.rstd_mid_N, table_.view(params, mlp_norm), dh_NC);
  layer.mixer.backward(ops, scratch, MixerParams::of(table_, params, config_, i), MixerParams::of(table_, grads, config_, i), du_NC, dh_NC, layer.u_NC);
  ops.rmsnorm_backward(dh_NC, table_.view(grads, mixer_norm), du_NC, layer.h_NC, layer.rstd_N, table_.view(params, mixer_norm), dh_NC);
  scratch.rewind(mark);
}

}  // namespace tmamba
