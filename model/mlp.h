// The SwiGLU MLP of one layer: out = (SiLU(u gate^T) * (u up^T)) down^T. N rows, C model width, F MLP width.
#pragma once

#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "model/allocation_plan.h"
#include "model/parameters.h"

namespace tmamba {

struct MlpParams {
  Tensor gate_up_2FC, down_CF;

  static MlpParams of(const ParameterTable& table, const Tensor& flat, int64_t layer);
};

struct MlpActivations {
  Tensor gate_up_N2F;
  Tensor act_NF;  // SiLU(gate) * up
};

// out = mlp(u), both [N, C]; writes the activations. Training and decoding (model/decoder.h) both call this.
void mlp_forward(Ops& ops, const MlpParams& w, const MlpActivations& saved, Tensor out_NC, ConstTensor u_NC);

class Mlp {
 public:
  // For a layer of the model with these parameters; all layers have the same shapes.
  Mlp(const ParameterTable& table, int64_t rows, DType dtype, Recompute level)
      : rows_(rows), ffn_(table.find("layers.0.mlp.down.weight").local_cols), dtype_(dtype), level_(level) {}
  // Assigns memory to the activations; called before everything else.
  void allocate(const AllocationPlan& plan);

  void forward(Ops& ops, const MlpParams& w, Tensor out_NC, ConstTensor u_NC) {
    mlp_forward(ops, w, saved_, out_NC, u_NC);
  }
  // Before backward: recomputes the activations that forward did not save.
  void recompute(Ops& ops, const MlpParams& w, ConstTensor u_NC);
  // Overwrites du; adds to the gradients of the parameters.
  void backward(Ops& ops, Arena& scratch, const MlpParams& w, const MlpParams& grad, Tensor du_NC, ConstTensor dout_NC,
                ConstTensor u_NC);

 private:
  int64_t rows_, ffn_;
  DType dtype_;
  Recompute level_;
  MlpActivations saved_;
};

}  // namespace tmamba
