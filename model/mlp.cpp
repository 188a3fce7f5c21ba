#include "model/mlp.h"

namespace tmamba {

MlpParams MlpParams::of(const ParameterTable& table, const Tensor& flat, int64_t layer) {
  return {.gate_up_2FC = table.view(flat, str("layers.", layer, ".mlp.gate_up.weight")),
          .down_CF = table.view(flat, str("layers.", layer, ".mlp.down.weight"))};
}

void mlp_forward(Ops& ops, const MlpParams& w, const MlpActivations& saved, Tensor out_NC, ConstTensor u_NC) {
  ops.linear_forward({.y_NO = saved.gate_up_N2F, .x_NI = u_NC, .w_OI = w.gate_up_2FC});
  ops.swiglu_forward({.h_NF = saved.act_NF, .gate_up_N2F = saved.gate_up_N2F});
  ops.linear_forward({.y_NO = out_NC, .x_NI = saved.act_NF, .w_OI = w.down_CF});
}

void Mlp::allocate(const AllocationPlan& plan) {
  plan.save_before(Recompute::mlp, saved_.gate_up_N2F, {rows_, 2 * ffn_}, dtype_);
  plan.save_before(Recompute::cheap, saved_.act_NF, {rows_, ffn_}, dtype_);
}

void Mlp::recompute(Ops& ops, const MlpParams& w, ConstTensor u_NC) {
  if (recomputes(level_, Recompute::mlp))
    ops.linear_forward({.y_NO = saved_.gate_up_N2F, .x_NI = u_NC, .w_OI = w.gate_up_2FC});
  if (recomputes(level_, Recompute::cheap))
    ops.swiglu_forward({.h_NF = saved_.act_NF, .gate_up_N2F = saved_.gate_up_N2F});
}

void Mlp::backward(Ops& ops, Arena& scratch, const MlpParams& w, const MlpParams& grad, Tensor du_NC,
                   ConstTensor dout_NC, ConstTensor u_NC) {
  const size_t mark = scratch.used();
  const Tensor dact_NF = scratch.take({rows_, ffn_}, dtype_);
  const Tensor dgate_up_N2F = scratch.take({rows_, 2 * ffn_}, dtype_);
  ops.linear_backward_input({.dx_NI = dact_NF, .dy_NO = dout_NC, .w_OI = w.down_CF, .accumulate = false});
  ops.linear_backward_weight({.dw_OI = grad.down_CF, .dy_NO = dout_NC, .x_NI = saved_.act_NF});
  ops.swiglu_backward({.dgate_up_N2F = dgate_up_N2F, .dh_NF = dact_NF, .gate_up_N2F = saved_.gate_up_N2F});
  ops.linear_backward_input({.dx_NI = du_NC, .dy_NO = dgate_up_N2F, .w_OI = w.gate_up_2FC, .accumulate = false});
  ops.linear_backward_weight({.dw_OI = grad.gate_up_2FC, .dy_NO = dgate_up_N2F, .x_NI = u_NC});
  scratch.rewind(mark);
}

}  // namespace tmamba
