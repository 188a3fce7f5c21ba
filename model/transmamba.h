// The model: embedding, layers (h += mixer(norm(h)); h += mlp(norm(h))), norm, head and loss (model/SPEC.md section 1),
// forward and backward without automatic differentiation.
//
// A rank holds n tokens of each of B sequences, N = B n rows. Under tensor parallelism it holds r of those rows of the
// residual stream: the inputs of a layer's projections are gathered from the tensor-parallel ranks, and its outputs are
// summed over them (r = N with one rank). C model width, V vocabulary.
#pragma once

#include <functional>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "model/loss.h"
#include "model/mixer.h"
#include "model/mlp.h"
#include "model/model_params.h"
#include "model/parallel.h"

namespace tmamba {

// This rank's tokens and targets of one micro-batch: int32, contiguous, on the model's device.
struct TokenBatch {
  ConstTensor tokens_Bn;
  ConstTensor targets_Bn;
};

class TransMamba {
 public:
  // Takes memory for the activations that backward needs from `saved`, at fixed addresses: the saved activations of all
  // layers, and the recomputed ones of one layer. Sizes, TransPoints and exchanges are those of `ranks`; all references
  // must outlive the model. A model that only runs forward needs the least memory at Recompute::all.
  TransMamba(const ModelConfig& config, const ParameterTable& table, ModelRanks& ranks, DType dtype, Arena& saved,
             Recompute level = Recompute::none);

  // Adds the losses of one micro-batch to `sums`.
  void forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch, const LossSums& sums);

  // The same; adds the gradients of (loss sum * grad_scale) to `grads` ([acc], a flat buffer as `params`).
  // on_bucket(b) is called as soon as the gradients of bucket b (ParameterTable) are complete: last layer first.
  void forward_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads, const TokenBatch& batch,
                        double grad_scale, const LossSums& sums, const std::function<void(int)>& on_bucket);

  // For tests, from the last forward: the residual stream before layer i and after its mixer (not at Recompute::all),
  // [r, C], and the mixer of layer i.
  ConstTensor residual(int64_t layer) const { return layers_[static_cast<size_t>(layer)].mixer_norm.h_rC; }
  ConstTensor residual_after_mixer(int64_t layer) const { return layers_[static_cast<size_t>(layer)].mlp_norm.h_rC; }
  // The input of the head, [N, C].
  ConstTensor normed_output() const { return output_norm_.u_NC; }
  const Mixer& mixer(int64_t layer) const { return layers_[static_cast<size_t>(layer)].mixer; }

 private:
  // A norm of the residual stream: its input on this rank, its output of all rows, and 1 / rms of each row.
  struct Norm {
    Tensor h_rC = {}, u_NC = {}, rstd_r = {};
  };
  struct Layer {
    Mixer mixer;
    Mlp mlp;
    Norm mixer_norm = {}, mlp_norm = {};
  };

  void allocate(Layer& layer, const AllocationPlan& plan) const;
  // This rank's rows of a tensor of all rows.
  Tensor own_rows(const Tensor& x_NC) const { return x_NC.slice(0, rows_.begin, rows_.size()); }
  // norm.h = x + this rank's rows of the sum of `delta` over the tensor-parallel ranks; then the norm of it.
  void add_and_normalize(Ops& ops, const Norm& norm, const Tensor& w_C, const Tensor& x_rC, const Tensor& delta_NC);
  void normalize(Ops& ops, const Norm& norm, const Tensor& w_C);
  // dh of this rank's rows from du, which is summed over the tensor-parallel ranks; dh is overwritten or, with
  // `add_residual`, added to.
  void norm_backward(Ops& ops, const Norm& norm, const Tensor& w_C, const Tensor& dw_C, const Tensor& dh_NC,
                     const Tensor& du_NC, bool add_residual);
  void layers_forward(Ops& ops, Arena& scratch, const ModelParams& w, const TokenBatch& batch);
  void recompute_mixer(Ops& ops, Arena& scratch, const LayerParams& w, Layer& layer);
  void recompute_mlp(Ops& ops, const LayerParams& w, Layer& layer, const Tensor& out_NC);
  void layer_backward(Ops& ops, Arena& scratch, const LayerParams& w, const LayerParams& grad, Layer& layer,
                      const Tensor& dh_NC);
  HeadLoss head_args(const ModelParams& w, const TokenBatch& batch) const;
  int64_t vocab_begin() const { return shard_of(config_.vocab, ranks_.tensor().rank(), ranks_.tensor().size()).begin; }

  const ModelConfig& config_;
  const ParameterTable& table_;
  ModelRanks& ranks_;
  DType dtype_;
  Recompute level_;
  int64_t all_rows_;
  TokenRange rows_;  // of the residual stream, on this rank
  std::vector<Layer> layers_;
  Norm output_norm_;  // after the last layer
};

}  // namespace tmamba
