// The SwiGLU MLP of one layer: out = (SiLU(u gate^T) * (u up^T)) down^T. N rows, C model width, F MLP width.
#pragma once

#include "kernels/base/buffer.h"
#include "kernels/ops.h"
#include "model/parameters.h"

namespace tmamba {

struct MlpParams {
  Tensor gate_up_2FC, down_CF;

  static MlpParams of(const ParameterTable& table, const Tensor& flat, int64_t layer);
};

class Mlp {
 public:
  Mlp(int64_t rows, int64_t local_ffn, DType dtype, Arena& saved);

  // out = mlp(u), both [N, C]; u must live until backward.
  void forward(Ops& ops, const MlpParams& w, Tensor out_NC, ConstTensor u_NC);
  // du written over; gradients of the parameters added.
  void backward(Ops& ops, Arena& scratch, const MlpParams& w, const MlpParams& grad, Tensor du_NC, ConstTensor dout_NC,
                ConstTensor u_NC);

 private:
  DType dtype_;
  Tensor gate_up_N2F_;
  Tensor act_NF_;
};

}  // namespace tmamba
