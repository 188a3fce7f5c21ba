// The model: embedding, layers (h += mixer(norm(h)); h += mlp(norm(h))), norm, head and loss (spec.md section 1),
// forward and backward by hand.
//
// A rank holds n tokens of each of B sequences, N = B n rows. Under tensor parallelism it holds r of those rows of the
// residual stream; what a layer multiplies is gathered from the ranks that share it, and what it adds is summed over
// them (r = N with one). C model width, V vocabulary.
#pragma once

#include <functional>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "model/loss.h"
#include "model/mixer.h"
#include "model/mlp.h"
#include "model/parallel.h"
#include "model/parameters.h"

namespace tmamba {

// One micro-batch: this rank's tokens and targets. int32, contiguous, on the model's device.
struct TokenBatch {
  ConstTensor tokens_Bn;
  ConstTensor targets_Bn;
};

class TransMamba {
 public:
  // Takes the activations that backward needs from `saved`, at fixed addresses: those kept from forward, and room for
  // what it computes again of one layer. Sizes, TransPoints and exchanges are those of `ranks`; everything must outlive
  // the model. A model that runs forward alone needs least at Recompute::all.
  TransMamba(const ModelConfig& config, const ParameterTable& table, ModelRanks& ranks, DType dtype, Arena& saved,
             Recompute level = Recompute::none);

  // Sums of the losses of one micro-batch.
  void forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch, const LossSums& sums);

  // The same, and the gradients of (loss sum * grad_scale), added to `grads` ([acc], a flat buffer as `params`).
  // on_bucket(b) is called as soon as the gradients of bucket b (ParameterTable) are complete: last layer first.
  void forward_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads, const TokenBatch& batch,
                        double grad_scale, const LossSums& sums, const std::function<void(int)>& on_bucket);

  // Of the last forward, for tests: the residual stream before layer i, and after its mixer (not at Recompute::all),
  // [r, C]; layer i's mixer.
  ConstTensor residual(int64_t layer) const { return layers_[static_cast<size_t>(layer)].h_rC; }
  ConstTensor residual_after_mixer(int64_t layer) const { return layers_[static_cast<size_t>(layer)].h_mid_rC; }
  // What the head multiplies, [N, C].
  ConstTensor normed_output() const { return u_out_NC_; }
  const Mixer& mixer(int64_t layer) const { return layers_[static_cast<size_t>(layer)].mixer; }

 private:
  struct Layer {
    Mixer mixer;
    Mlp mlp;
    Tensor h_rC = {}, u_NC = {}, rstd_r = {};              // before the mixer: residual, its norm
    Tensor h_mid_rC = {}, u_mid_NC = {}, rstd_mid_r = {};  // before the MLP
  };

  void place(Layer& layer, const AllocationPlan& place) const;
  // This rank's rows of a tensor of all rows.
  Tensor mine(const Tensor& x_NC) const { return x_NC.slice(0, rows_.begin, rows_.size()); }
  // u = norm(sum) of all rows, with sum = x + this rank's rows of the sum of `delta` over the tensor-parallel ranks.
  void add_norm(Ops& ops, const Tensor& u_NC, const Tensor& rstd_r, const Tensor& sum_rC, const Tensor& x_rC,
                const Tensor& delta_NC, const Tensor& w_C);
  // u = norm(x) of all rows.
  void norm(Ops& ops, const Tensor& u_NC, const Tensor& rstd_r, const Tensor& x_rC, const Tensor& w_C);
  void norm_backward(Ops& ops, const Tensor& dh_NC, const Tensor& du_NC, const Tensor& x_rC, const Tensor& rstd_r,
                     const std::string& name, const Tensor& params, const Tensor& grads, bool add_residual);
  void layers_forward(Ops& ops, Arena& scratch, const Tensor& params, const TokenBatch& batch);
  void recompute_mixer(Ops& ops, Arena& scratch, const Tensor& params, int64_t layer);
  void recompute_mlp(Ops& ops, const Tensor& params, int64_t layer, const Tensor& out_NC);
  void layer_backward(Ops& ops, Arena& scratch, const Tensor& params, const Tensor& grads, int64_t layer, Tensor dh_NC);
  HeadLoss head_args(const Tensor& params, const TokenBatch& batch) const;
  int64_t vocab_begin() const { return shard_of(config_.vocab, ranks_.tensor().rank(), ranks_.tensor().size()).begin; }

  const ModelConfig& config_;
  const ParameterTable& table_;
  ModelRanks& ranks_;
  DType dtype_;
  Recompute level_;
  int64_t all_rows_;
  TokenRange rows_;  // of the residual stream, on this rank
  std::vector<Layer> layers_;
  Tensor h_out_rC_, u_out_NC_, rstd_out_r_;  // after the last layer
};

}  // namespace tmamba
