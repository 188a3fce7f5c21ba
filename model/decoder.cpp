#include "model/decoder.h"

#include <algorithm>

namespace tmamba {

Decoder::Decoder(const ModelConfig& config, const ParameterTable& table, const std::vector<int64_t>& transpoints,
                 int64_t batch, int64_t max_tokens, DType dtype, Device device, int64_t prefill_chunk)
    : config_(config),
      table_(table),
      batch_(batch),
      max_tokens_(max_tokens),
      prefill_chunk_(std::min(prefill_chunk, max_tokens)),
      heads_(config.heads),
      head_dim_(config.head_dim()),
      ffn_(config.ffn),
      dtype_(dtype),
      acc_(accumulate_type(dtype)),
      device_(device) {
  const int64_t B = batch, n = prefill_chunk_, H = heads_, D = head_dim_, C = config.dim, X = 3 * C, W = config.conv;
  for (size_t i = 0; i < transpoints.size(); ++i) {
    const bool ssm = config.has_ssm(static_cast<int64_t>(i));
    const int64_t P = ssm ? transpoints[i] : max_tokens;
    Layer layer{.ssm = ssm,
                .transpoint = P,
                .capacity = std::min(P, max_tokens),
                .tail_BWX = Buffer({B, W - 1, X}, dtype, device),
                .keys_BPHD = {},
                .values_BPHD = {},
                .dt_BPH = {},
                .log_a_BPH = {},
                .state_BHDD = {}};
    if (P == 0) {
      layer.state_BHDD = Buffer({B, H, D, D}, acc_, device);
    } else {
      layer.keys_BPHD = Buffer({B, layer.capacity, H, D}, dtype, device);
      layer.values_BPHD = Buffer({B, layer.capacity, H, D}, dtype, device);
    }
    if (ssm && P > 0) {
      layer.dt_BPH = Buffer({B, layer.capacity, H}, acc_, device);
      layer.log_a_BPH = Buffer({B, layer.capacity, H}, acc_, device);
    }
    layers_.push_back(std::move(layer));
  }
  auto rows = [&](int64_t width) { return Buffer({B * n, width}, dtype, device); };
  auto stats = [&](int64_t width) { return Buffer({B * n, width}, acc_, device); };
  work_ = {.h = rows(C),
           .delta = rows(C),
           .u = rows(C),
           .rstd = stats(1),
           .pre = rows(X),
           .qkv = rows(X),
           .tail = Buffer({B, W - 1, X}, dtype, device),
           .raw = rows(H),
           .dt = stats(H),
           .log_a = stats(H),
           .z = rows(C),
           .y = rows(C),
           .gate_rstd = stats(H),
           .lse = stats(H),
           .mixed = rows(C),
           .gate_up = rows(2 * ffn_),
           .act = rows(ffn_),
           .last = Buffer({B, C}, dtype, device),
           .logits = Buffer({B, config.vocab}, dtype, device)};
}

int64_t Decoder::cache_bytes() const {
  size_t bytes = 0;
  for (const Layer& l : layers_) {
    bytes += l.tail_BWX.bytes() + l.keys_BPHD.bytes() + l.values_BPHD.bytes() + l.dt_BPH.bytes() + l.log_a_BPH.bytes() +
             l.state_BHDD.bytes();
  }
  return static_cast<int64_t>(bytes);
}

Tensor Decoder::acts(const Buffer& buffer, int64_t n, int64_t width) const {
  return buffer.tensor({batch_, n, width}, dtype_);
}

Tensor Decoder::scalars_of_heads(const Buffer& buffer, int64_t n) const {
  return buffer.tensor({batch_, n, heads_}, acc_);
}

Tensor Decoder::cached(const Buffer& buffer, const Layer& layer) const {
  return buffer.tensor({batch_, layer.capacity, heads_, head_dim_}, dtype_);
}

Tensor Decoder::feed(Ops& ops, const Tensor& params, ConstTensor tokens_Bn) {
  const int64_t n = tokens_Bn.size(1);
  TM_CHECK(n > 0 && position_ + n <= max_tokens_, "Decoder::feed: ", n, " tokens at position ", position_,
           " of at most ", max_tokens_);
  const ModelParams w = ModelParams::of(table_, params, config_);
  for (int64_t begin = 0; begin < n; begin += prefill_chunk_) {
    feed_chunk(ops, w, tokens_Bn.slice(1, begin, std::min(prefill_chunk_, n - begin)));
  }
  return work_.logits.tensor({batch_, config_.vocab}, dtype_);
}

void Decoder::feed_chunk(Ops& ops, const ModelParams& w, ConstTensor tokens_Bn) {
  const int64_t B = batch_, n = tokens_Bn.size(1), N = B * n, C = config_.dim;
  const Tensor h_NC = work_.h.tensor({N, C}, dtype_), delta_NC = work_.delta.tensor({N, C}, dtype_);
  const Tensor u_NC = work_.u.tensor({N, C}, dtype_), rstd_N = work_.rstd.tensor({N}, acc_);
  const MlpActivations mlp{.gate_up_N2F = work_.gate_up.tensor({N, 2 * ffn_}, dtype_),
                           .act_NF = work_.act.tensor({N, ffn_}, dtype_)};
  const auto normalize = [&](const Tensor& w_C) {
    ops.rmsnorm_forward({.y_NC = u_NC, .rstd_N = rstd_N, .x_NC = h_NC, .w_C = w_C, .eps = config_.norm_eps});
  };
  for (int64_t b = 0; b < B; ++b) {
    ops.embedding_forward({.y_NC = h_NC.slice(0, b * n, n),
                           .table_VC = w.embedding_VC,
                           .tokens_N = tokens_Bn.select(0, b),
                           .vocab_begin = 0});
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    normalize(w.layers[i].mixer_norm_C);
    mixer(ops, w.layers[i].mixer, layers_[i], delta_NC, u_NC);
    ops.add({h_NC, delta_NC});
    normalize(w.layers[i].mlp_norm_C);
    mlp_forward(ops, w.layers[i].mlp, mlp, delta_NC, u_NC);
    ops.add({h_NC, delta_NC});
  }
  position_ += n;
  normalize(w.norm_C);
  const Tensor last_BC = work_.last.tensor({B, C}, dtype_);
  ops.copy({last_BC, u_NC.view({B, n, C}).select(1, n - 1)});
  ops.linear_forward({.y_NO = work_.logits.tensor({B, config_.vocab}, dtype_), .x_NI = last_BC, .w_OI = w.head_VC});
}

void Decoder::mixer(Ops& ops, const MixerParams& w, Layer& layer, Tensor out_NC, ConstTensor u_NC) {
  const int64_t B = batch_, n = u_NC.size(0) / B, C = config_.dim;
  const int64_t attention = std::clamp<int64_t>(layer.transpoint - position_, 0, n);
  const Tensor pre_BnX = acts(work_.pre, n, 3 * C), raw_BnH = acts(work_.raw, n, heads_);
  project_qkv(ops, w, pre_BnX, u_NC);
  ops.conv_silu_forward({.y_BTC = acts(work_.qkv, n, 3 * C),
                         .x_BTC = pre_BnX,
                         .halo_BWC = layer.tail_BWX.tensor({B, config_.conv - 1, 3 * C}, dtype_),
                         .w_CW = w.conv_XW,
                         .b_C = w.conv_bias_X});
  shift_tail(ops, layer, pre_BnX);
  if (layer.ssm) {
    project_dt(ops, w, raw_BnH, u_NC);
    step_sizes(ops, w.sequence(), scalars_of_heads(work_.dt, n), scalars_of_heads(work_.log_a, n), raw_BnH);
  }
  if (attention > 0) {
    attend(ops, layer, n, attention);
    if (layer.ssm && position_ + attention == layer.transpoint) collapse(ops, layer);
  }
  if (attention < n) scan(ops, w, layer, attention, u_NC);
  project_out(ops, w, out_NC, acts(work_.mixed, n, C));
}

// The tail becomes the last W-1 rows of (tail, pre).
void Decoder::shift_tail(Ops& ops, Layer& layer, const Tensor& pre_BnX) {
  const int64_t rows = config_.conv - 1, n = pre_BnX.size(1), fresh = std::min(n, rows);
  const Tensor tail = layer.tail_BWX.tensor({batch_, rows, pre_BnX.size(2)}, dtype_);
  const Tensor next = work_.tail.tensor({batch_, rows, pre_BnX.size(2)}, dtype_);
  if (fresh < rows) ops.copy({next.slice(1, 0, rows - fresh), tail.slice(1, fresh, rows - fresh)});
  ops.copy({next.slice(1, rows - fresh, fresh), pre_BnX.slice(1, n - fresh, fresh)});
  ops.copy({tail, next});
}

// Appends the first `count` of the n new tokens to the cache, which they attend to.
void Decoder::attend(Ops& ops, Layer& layer, int64_t n, int64_t count) {
  const Tensor qkv_BnX = acts(work_.qkv, n, 3 * config_.dim);
  const Tensor q = qkv_heads(qkv_BnX, QkvChannel::q, 0, count, heads_);
  const Tensor keys = cached(layer.keys_BPHD, layer), values = cached(layer.values_BPHD, layer);
  const auto append = [&](const Buffer& cache, const Buffer& fresh) {
    ops.copy({scalars_of_heads(cache, layer.capacity).slice(1, position_, count),
              scalars_of_heads(fresh, n).slice(1, 0, count)});
  };
  ops.rope_forward({.y_BTHD = q, .x_BTHD = q, .position = position_, .theta = config_.rope_theta});
  ops.rope_forward({.y_BTHD = keys.slice(1, position_, count),
                    .x_BTHD = qkv_heads(qkv_BnX, QkvChannel::k, 0, count, heads_),
                    .position = position_,
                    .theta = config_.rope_theta});
  ops.copy({values.slice(1, position_, count), qkv_heads(qkv_BnX, QkvChannel::v, 0, count, heads_)});
  if (layer.ssm) append(layer.dt_BPH, work_.dt), append(layer.log_a_BPH, work_.log_a);
  ops.attention_forward({.o_BTHD = acts(work_.mixed, n, config_.dim).slice(1, 0, count).split(2, heads_, head_dim_),
                         .lse_BTH = scalars_of_heads(work_.lse, count),
                         .q_BTHD = q,
                         .k_BSHD = keys.slice(1, 0, position_ + count),
                         .v_BSHD = values.slice(1, 0, position_ + count),
                         .q_begin = position_,
                         .scale = attention_scale(head_dim_)});
}

// The Memory Converter: turns the cache into the state. Cached keys are rotated; the state needs them before rotation.
void Decoder::collapse(Ops& ops, Layer& layer) {
  layer.state_BHDD = Buffer({batch_, heads_, head_dim_, head_dim_}, acc_, device_);
  if (config_.converter == Converter::exact) {
    const Tensor keys = cached(layer.keys_BPHD, layer);
    ops.rope_backward({.dx_BTHD = keys, .dy_BTHD = keys, .position = 0, .theta = config_.rope_theta});
    ops.ssd_forward({.y_BTHD = {},
                     .final_state_BHKD = layer.state_BHDD.tensor({batch_, heads_, head_dim_, head_dim_}, acc_),
                     .log_decay_BH = {},
                     .q_BTHD = {},
                     .k_BTHD = keys,
                     .v_BTHD = cached(layer.values_BPHD, layer),
                     .dt_BTH = scalars_of_heads(layer.dt_BPH, layer.transpoint),
                     .log_a_BTH = scalars_of_heads(layer.log_a_BPH, layer.transpoint),
                     .D_H = {},
                     .initial_state_BHKD = {},
                     .chunk = config_.chunk});
  }
  ops.synchronize();
  for (Buffer* buffer : {&layer.keys_BPHD, &layer.values_BPHD, &layer.dt_BPH, &layer.log_a_BPH}) *buffer = Buffer();
}

// The SSM processes the new tokens from `begin` on.
void Decoder::scan(Ops& ops, const MixerParams& w, Layer& layer, int64_t begin, ConstTensor u_NC) {
  const int64_t B = batch_, n = u_NC.size(0) / B, count = n - begin, C = config_.dim;
  const Tensor qkv_BnX = acts(work_.qkv, n, 3 * C);
  const Tensor state = layer.state_BHDD.tensor({B, heads_, head_dim_, head_dim_}, acc_);
  const Tensor y = acts(work_.y, count, C).split(2, heads_, head_dim_);
  ops.ssd_forward({.y_BTHD = y,
                   .final_state_BHKD = state,
                   .log_decay_BH = {},
                   .q_BTHD = qkv_heads(qkv_BnX, QkvChannel::q, begin, count, heads_),
                   .k_BTHD = qkv_heads(qkv_BnX, QkvChannel::k, begin, count, heads_),
                   .v_BTHD = qkv_heads(qkv_BnX, QkvChannel::v, begin, count, heads_),
                   .dt_BTH = scalars_of_heads(work_.dt, n).slice(1, begin, count),
                   .log_a_BTH = scalars_of_heads(work_.log_a, n).slice(1, begin, count),
                   .D_H = w.D_H,
                   .initial_state_BHKD = state,
                   .chunk = config_.chunk});
  const Tensor z_BSC = config_.z_gate ? acts(work_.z, count, C) : Tensor();
  project_z(ops, w, z_BSC, u_NC);
  gate_and_norm(ops, w, acts(work_.mixed, n, C).slice(1, begin, count), scalars_of_heads(work_.gate_rstd, count), y,
                z_BSC, config_.norm_eps);
}

}  // namespace tmamba
