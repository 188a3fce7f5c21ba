// Decoding token by token (model/SPEC.md section 6): before a layer's TransPoint its keys and values are cached; at the
// TransPoint the Memory Converter turns the cache into the SSM state, and the cache is freed; from then on memory is
// constant. Projections, gate and MLP are those of training (model/mixer_projections.h, model/mlp.h); the mixing of
// tokens works on caches.
//
// B sequences in lockstep, n new tokens, N = B n rows, X = 3 H D channels of q, k, v, C model width, V vocabulary.
#pragma once

#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "model/config.h"
#include "model/model_params.h"

namespace tmamba {

class Decoder {
 public:
  // For at most max_tokens tokens; `transpoints` may lie beyond them. Prompts are processed `prefill_chunk` tokens at a
  // time.
  Decoder(const ModelConfig& config, const ParameterTable& table, const std::vector<int64_t>& transpoints,
          int64_t batch, int64_t max_tokens, DType dtype, Device device, int64_t prefill_chunk = 256);

  // Appends n > 0 tokens (int32 [B, n], contiguous) and returns the logits after the last of them, [B, V]; they are
  // valid until the next call.
  Tensor feed(Ops& ops, const Tensor& params, ConstTensor tokens_Bn);

  int64_t position() const { return position_; }
  // Bytes that caches and states take now.
  int64_t cache_bytes() const;

 private:
  struct Layer {
    bool ssm;  // else it attends to all tokens, past the trained sequence length too
    int64_t transpoint;
    int64_t capacity;  // tokens of the cache
    Buffer tail_BWX;   // the last W-1 rows before the convolution
    Buffer keys_BPHD;  // rotated keys of the prefix; this and the next three are freed at the TransPoint
    Buffer values_BPHD;
    Buffer dt_BPH, log_a_BPH;
    Buffer state_BHDD;  // allocated at the TransPoint
  };
  // The activations of one chunk, shared by all layers.
  struct Workspace {
    Buffer h, delta, u, rstd, pre, qkv, tail, raw, dt, log_a, z, y, gate_rstd, lse, mixed, gate_up, act, last, logits;
  };

  void feed_chunk(Ops& ops, const ModelParams& w, ConstTensor tokens_Bn);
  void mixer(Ops& ops, const MixerParams& w, Layer& layer, Tensor out_NC, ConstTensor u_NC);
  void shift_tail(Ops& ops, Layer& layer, const Tensor& pre_BnX);
  void attend(Ops& ops, Layer& layer, int64_t n, int64_t count);
  void scan(Ops& ops, const MixerParams& w, Layer& layer, int64_t begin, ConstTensor u_NC);
  void collapse(Ops& ops, Layer& layer);
  Tensor acts(const Buffer& buffer, int64_t n, int64_t width) const;  // [B, n, width] of type dtype_
  Tensor scalars_of_heads(const Buffer& buffer, int64_t n) const;     // [B, n, H] of the accumulate type
  Tensor cached(const Buffer& buffer, const Layer& layer) const;

  const ModelConfig& config_;
  const ParameterTable& table_;
  int64_t batch_, max_tokens_, prefill_chunk_, heads_, head_dim_, ffn_;
  DType dtype_, acc_;
  Device device_;
  int64_t position_ = 0;
  std::vector<Layer> layers_;
  Workspace work_;
};

}  // namespace tmamba
