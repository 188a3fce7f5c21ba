// The model: embedding, layers (h += mixer(norm(h)); h += mlp(norm(h))), norm, head and loss (spec.md section 1), forward
// and backward by hand. B sequences, T tokens, N = B T rows, C model width, V vocabulary.
#pragma once

#include <functional>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops.h"
#include "model/loss.h"
#include "model/mixer.h"
#include "model/mlp.h"
#include "model/parameters.h"

namespace tmamba {

// One micro-batch. int32, contiguous, on the model's device.
struct TokenBatch {
  ConstTensor tokens_BT;
  ConstTensor targets_BT;
};

class TransMamba {
 public:
  struct Shape {
    int64_t batch = 1;
    int64_t tokens = 0;
    DType dtype = DType::f32;
  };

  // Takes the activations that backward needs from `saved`, at fixed addresses. `transpoints`: P of every layer.
  TransMamba(const ModelConfig& config, const ParameterTable& table, const std::vector<int64_t>& transpoints,
             const Shape& shape, Arena& saved);

  // Sums of the losses of one micro-batch.
  void forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch, const LossSums& sums);

  // The same, and the gradients of (loss sum * grad_scale), added to `grads` ([acc], a flat buffer as `params`).
  // on_bucket(b) is called as soon as the gradients of bucket b (ParameterTable) are complete: last layer first.
  void forward_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads, const TokenBatch& batch,
                        double grad_scale, const LossSums& sums, const std::function<void(int)>& on_bucket);

  // Of the last forward, for tests: the residual stream before layer i, and after its mixer, [N, C]; layer i's mixer.
  ConstTensor residual(int64_t layer) const { return layers_[static_cast<size_t>(layer)].h_NC; }
  ConstTensor residual_after_mixer(int64_t layer) const { return layers_[static_cast<size_t>(layer)].h_mid_NC; }
  // What the head multiplies, [N, C].
  ConstTensor normed_output() const { return u_out_NC_; }
  const Mixer& mixer(int64_t layer) const { return layers_[static_cast<size_t>(layer)].mixer; }

 private:
  struct Layer {
    Tensor h_NC, u_NC, rstd_N;              // before the mixer: residual, its norm
    Tensor h_mid_NC, u_mid_NC, rstd_mid_N;  // before the MLP
    Mixer mixer;
    Mlp mlp;
  };

  void layers_forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch);
  void layer_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads, int64_t layer, Tensor dh_NC);
  HeadLoss head_args(const Tensor& params, const TokenBatch& batch) const;

  const ModelConfig& config_;
  const ParameterTable& table_;
  Shape shape_;
  std::vector<Layer> layers_;
  Tensor h_out_NC_, u_out_NC_, rstd_out_N_;  // after the last layer
};

}  // namespace tmamba
