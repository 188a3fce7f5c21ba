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

class Mlp {
 public:
  Mlp(int64_t rows, int64_t local_ffn, DType dtype, Recompute level)
      : rows_(rows), ffn_(local_ffn), dtype_(dtype), level_(level) {}
  // Gives its activations their memory, before anything else.
  void place(const AllocationPlan& place);

  // out = mlp(u), both [N, C].
  void forward(Ops& ops, const MlpParams& w, Tensor out_NC, ConstTensor u_NC);
  // Before backward: what forward did not keep.
  void recompute(Ops& ops, const MlpParams& w, ConstTensor u_NC);
  // du written over; gradients of the parameters added.
  void backward(Ops& ops, Arena& scratch, const MlpParams& w, const MlpParams& grad, Tensor du_NC, ConstTensor dout_NC,
                ConstTensor u_NC);

 private:
  int64_t rows_, ffn_;
  DType dtype_;
  Recompute level_;
  Tensor gate_up_N2F_;
  Tensor act_NF_;
};

}  // namespace tmamba
