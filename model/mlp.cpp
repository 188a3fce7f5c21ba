#include "model/mlp.h"

namespace tmamba {

MlpParams MlpParams::of(const ParameterTable& table, const Tensor& flat, int64_t layer) {
  return {.gate_up_2FC = table.view(flat, str("layers.", layer, ".mlp.gate_up.weight")),
          .down_CF = table.view(flat, str("layers.", layer, ".mlp.down.weight"))};
}

Mlp::Mlp(int64_t rows, int64_t local_ffn, DType dtype, Arena& saved)
    : dtype_(dtype),
      gate_up_N2F_(saved.take({rows, 2 * local_ffn}, dtype)),
      act_NF_(saved.take({rows, local_ffn}, dtype)) {}

void Mlp::forward(Ops& ops, const MlpParams& w, Tensor out_NC, ConstTensor u_NC) {
  ops.linear_forward(gate_up_N2F_, u_NC, w.gate_up_2FC);
  ops.swiglu_forward(act_NF_, gate_up_N2F_);
  ops.linear_forward(out_NC, act_NF_, w.down_CF);
}

void Mlp::backward(Ops& ops, Arena& scratch, const MlpParams& w, const MlpParams& grad, Tensor du_NC,
                   ConstTensor dout_NC, ConstTensor u_NC) {
  const size_t mark = scratch.used();
  const Tensor dact_NF = scratch.take({act_NF_.size(0), act_NF_.size(1)}, dtype_);
  const Tensor dgate_up_N2F = scratch.take({gate_up_N2F_.size(0), gate_up_N2F_.size(1)}, dtype_);
  ops.linear_backward_input(dact_NF, dout_NC, w.down_CF, false);
  ops.linear_backward_weight(grad.down_CF, dout_NC, act_NF_);
  ops.swiglu_backward(dgate_up_N2F, dact_NF, gate_up_N2F_);
  ops.linear_backward_input(du_NC, dgate_up_N2F, w.gate_up_2FC, false);
  ops.linear_backward_weight(grad.gate_up_2FC, dgate_up_N2F, u_NC);
  scratch.rewind(mark);
}

}  // namespace tmamba
