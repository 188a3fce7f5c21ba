#include "model/mlp.h"

namespace tmamba {

MlpParams MlpParams::of(const ParameterTable& table, const Tensor& flat, int64_t layer) {
  return {.gate_up_2FC = table.view(flat, str("layers.", layer, ".mlp.gate_up.weight")),
          .down_CF = table.view(flat, str("layers.", layer, ".mlp.down.weight"))};
}

void Mlp::place(const AllocationPlan& place) {
  place.keep_below(Recompute::mlp, gate_up_N2F_, {rows_, 2 * ffn_}, dtype_);
  place.keep_below(Recompute::cheap, act_NF_, {rows_, ffn_}, dtype_);
}

void Mlp::forward(Ops& ops, const MlpParams& w, Tensor out_NC, ConstTensor u_NC) {
  ops.linear_forward({.y_NO = gate_up_N2F_, .x_NI = u_NC, .w_OI = w.gate_up_2FC});
  ops.swiglu_forward({.h_NF = act_NF_, .gate_up_N2F = gate_up_N2F_});
  ops.linear_forward({.y_NO = out_NC, .x_NI = act_NF_, .w_OI = w.down_CF});
}

void Mlp::recompute(Ops& ops, const MlpParams& w, ConstTensor u_NC) {
  if (level_ >= Recompute::mlp) ops.linear_forward({.y_NO = gate_up_N2F_, .x_NI = u_NC, .w_OI = w.gate_up_2FC});
  if (level_ >= Recompute::cheap) ops.swiglu_forward({.h_NF = act_NF_, .gate_up_N2F = gate_up_N2F_});
}

void Mlp::backward(Ops& ops, Arena& scratch, const MlpParams& w, const MlpParams& grad, Tensor du_NC,
                   ConstTensor dout_NC, ConstTensor u_NC) {
  const size_t mark = scratch.used();
  const Tensor dact_NF = scratch.take({rows_, ffn_}, dtype_);
  const Tensor dgate_up_N2F = scratch.take({rows_, 2 * ffn_}, dtype_);
  ops.linear_backward_input({.dx_NI = dact_NF, .dy_NO = dout_NC, .w_OI = w.down_CF, .accumulate = false});
  ops.linear_backward_weight({.dw_OI = grad.down_CF, .dy_NO = dout_NC, .x_NI = act_NF_});
  ops.swiglu_backward({.dgate_up_N2F = dgate_up_N2F, .dh_NF = dact_NF, .gate_up_N2F = gate_up_N2F_});
  ops.linear_backward_input({.dx_NI = du_NC, .dy_NO = dgate_up_N2F, .w_OI = w.gate_up_2FC, .accumulate = false});
  ops.linear_backward_weight({.dw_OI = grad.gate_up_2FC, .dy_NO = dgate_up_N2F, .x_NI = u_NC});
  scratch.rewind(mark);
}

}  // namespace tmamba
