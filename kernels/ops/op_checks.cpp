#include "kernels/ops/op_checks.h"

#include "kernels/ops/checks.h"
#include "kernels/ops/step_scalars.h"

namespace tmamba {

void check_elementwise(Device device, const char* op, const ConstTensor& x) {
  TM_CHECK(x.device() == device, op, ": the tensor ", x.shape(), " is on ", name_of(x.device()));
}

void check_elementwise(Device device, const char* op, const Tensor& y, const ConstTensor& x) {
  check_elementwise(device, op, y), check_elementwise(device, op, x);
  bool same = y.dims() == x.dims();
  for (int i = 0; same && i < y.dims(); ++i) same = y.size(i) == x.size(i);
  TM_CHECK(same, op, ": y is ", y.shape(), ", x is ", x.shape());
}

void check_sum_squares(Device device, const Tensor& out_1, std::span<const ConstTensor> tensors) {
  expect_on(device, out_1, "sum_squares out", DType::f64, {1});
  for (const ConstTensor& x : tensors) {
    TM_CHECK(x.device() == device && x.contiguous() && (x.dtype() == DType::f32 || x.dtype() == DType::f64),
             "sum_squares: ", x.shape(), " ", name_of(x.dtype()), " must be contiguous on the ", place_of(device),
             " and of type float32 or float64");
  }
}

void check_embedding_forward(Device device, const Tensor& y_NC, const ConstTensor& table_VC,
                             const ConstTensor& tokens_N) {
  const int64_t N = y_NC.size(0), C = y_NC.size(1), V = table_VC.size(0);
  expect_on(device, y_NC, "embedding y_NC", table_VC.dtype(), {N, C});
  expect_on(device, table_VC, "embedding table_VC", table_VC.dtype(), {V, C});
  expect_on(device, tokens_N, "embedding tokens_N", DType::i32, {N});
}

void check_embedding_backward(Device device, const Tensor& dtable_VC, const ConstTensor& dy_NC,
                              const ConstTensor& tokens_N) {
  const int64_t N = dy_NC.size(0), C = dy_NC.size(1), V = dtable_VC.size(0);
  expect_on(device, dtable_VC, "embedding dtable_VC", accumulate_type(dy_NC.dtype()), {V, C});
  expect_on(device, dy_NC, "embedding dy_NC", dy_NC.dtype(), {N, C});
  expect_on(device, tokens_N, "embedding tokens_N", DType::i32, {N});
}

void check_rmsnorm_forward(Device device, const Tensor& y_NC, const Tensor& rstd_N, const Tensor& sum_NC,
                           const ConstTensor& x_NC, const ConstTensor& delta_NC, const ConstTensor& w_C) {
  const int64_t N = x_NC.size(0), C = x_NC.size(1);
  const DType dtype = x_NC.dtype();
  expect_on(device, y_NC, "rmsnorm y_NC", dtype, {N, C});
  expect_on(device, rstd_N, "rmsnorm rstd_N", accumulate_type(dtype), {N});
  expect_on(device, x_NC, "rmsnorm x_NC", dtype, {N, C});
  expect_optional_on(device, delta_NC, "rmsnorm delta_NC", dtype, {N, C});
  expect_optional_on(device, sum_NC, "rmsnorm sum_NC", dtype, {N, C});
  TM_CHECK(sum_NC.empty() == delta_NC.empty(), "rmsnorm: sum_NC and delta_NC come together");
  expect_on(device, w_C, "rmsnorm w_C", dtype, {C});
}

void check_rmsnorm_backward(Device device, const Tensor& dx_NC, const Tensor& dw_C, const ConstTensor& dy_NC,
                            const ConstTensor& x_NC, const ConstTensor& rstd_N, const ConstTensor& w_C,
                            const ConstTensor& dresidual_NC) {
  const int64_t N = x_NC.size(0), C = x_NC.size(1);
  const DType dtype = x_NC.dtype();
  expect_on(device, dx_NC, "rmsnorm dx_NC", dtype, {N, C});
  expect_on(device, dw_C, "rmsnorm dw_C", accumulate_type(dtype), {C});
  expect_on(device, dy_NC, "rmsnorm dy_NC", dtype, {N, C});
  expect_on(device, x_NC, "rmsnorm x_NC", dtype, {N, C});
  expect_on(device, rstd_N, "rmsnorm rstd_N", accumulate_type(dtype), {N});
  expect_on(device, w_C, "rmsnorm w_C", dtype, {C});
  expect_optional_on(device, dresidual_NC, "rmsnorm dresidual_NC", dtype, {N, C});
}

void check_linear_forward(Device device, const Tensor& y_NO, const ConstTensor& x_NI, const ConstTensor& w_OI) {
  const int64_t N = x_NI.size(0), I = x_NI.size(1), O = w_OI.size(0);
  const DType dtype = x_NI.dtype();
  expect_on(device, y_NO, "linear y_NO", dtype, {N, O});
  expect_on(device, x_NI, "linear x_NI", dtype, {N, I});
  expect_on(device, w_OI, "linear w_OI", dtype, {O, I});
}

void check_linear_backward_input(Device device, const Tensor& dx_NI, const ConstTensor& dy_NO,
                                 const ConstTensor& w_OI) {
  const int64_t N = dy_NO.size(0), O = dy_NO.size(1), I = w_OI.size(1);
  const DType dtype = dy_NO.dtype();
  expect_on(device, dx_NI, "linear dx_NI", dtype, {N, I});
  expect_on(device, dy_NO, "linear dy_NO", dtype, {N, O});
  expect_on(device, w_OI, "linear w_OI", dtype, {O, I});
}

void check_linear_backward_weight(Device device, const Tensor& dw_OI, const ConstTensor& dy_NO,
                                  const ConstTensor& x_NI) {
  const int64_t N = dy_NO.size(0), O = dy_NO.size(1), I = x_NI.size(1);
  const DType dtype = dy_NO.dtype();
  expect_on(device, dw_OI, "linear dw_OI", accumulate_type(dtype), {O, I});
  expect_on(device, dy_NO, "linear dy_NO", dtype, {N, O});
  expect_on(device, x_NI, "linear x_NI", dtype, {N, I});
}

void check_swiglu_forward(Device device, const Tensor& h_NF, const ConstTensor& gate_up_N2F) {
  const int64_t N = h_NF.size(0), F = h_NF.size(1);
  const DType dtype = h_NF.dtype();
  expect_on(device, h_NF, "swiglu h_NF", dtype, {N, F});
  expect_on(device, gate_up_N2F, "swiglu gate_up_N2F", dtype, {N, 2 * F});
}

void check_swiglu_backward(Device device, const Tensor& dgate_up_N2F, const ConstTensor& dh_NF,
                           const ConstTensor& gate_up_N2F) {
  const int64_t N = dh_NF.size(0), F = dh_NF.size(1);
  const DType dtype = dh_NF.dtype();
  expect_on(device, dgate_up_N2F, "swiglu dgate_up_N2F", dtype, {N, 2 * F});
  expect_on(device, dh_NF, "swiglu dh_NF", dtype, {N, F});
  expect_on(device, gate_up_N2F, "swiglu gate_up_N2F", dtype, {N, 2 * F});
}

void check_cross_entropy_stats(Device device, const Tensor& max_N, const Tensor& sum_exp_N, const Tensor& target_N,
                               const ConstTensor& logits_NV, const ConstTensor& targets_N) {
  const int64_t N = logits_NV.size(0), V = logits_NV.size(1);
  const DType acc = accumulate_type(logits_NV.dtype());
  expect_on(device, max_N, "cross_entropy max_N", acc, {N});
  expect_on(device, sum_exp_N, "cross_entropy sum_exp_N", acc, {N});
  expect_on(device, target_N, "cross_entropy target_N", acc, {N});
  expect_on(device, logits_NV, "cross_entropy logits_NV", logits_NV.dtype(), {N, V});
  expect_on(device, targets_N, "cross_entropy targets_N", DType::i32, {N});
}

void check_cross_entropy_rescale(Device device, const Tensor& sum_exp_N, const ConstTensor& max_N,
                                 const ConstTensor& global_max_N) {
  const int64_t N = max_N.size(0);
  const DType acc = max_N.dtype();
  expect_on(device, sum_exp_N, "cross_entropy_rescale sum_exp_N", acc, {N});
  expect_on(device, max_N, "cross_entropy_rescale max_N", acc, {N});
  expect_on(device, global_max_N, "cross_entropy_rescale global_max_N", acc, {N});
}

void check_cross_entropy_loss(Device device, const Tensor& loss_sum_1, const Tensor& count_1, const Tensor& loss_N,
                              const ConstTensor& max_N, const ConstTensor& sum_exp_N, const ConstTensor& target_N,
                              const ConstTensor& targets_N) {
  const int64_t N = max_N.size(0);
  const DType acc = max_N.dtype();
  expect_on(device, loss_sum_1, "cross_entropy loss_sum_1", DType::f64, {1});
  expect_on(device, count_1, "cross_entropy count_1", DType::f64, {1});
  expect_optional_on(device, loss_N, "cross_entropy loss_N", acc, {N});
  expect_on(device, max_N, "cross_entropy max_N", acc, {N});
  expect_on(device, sum_exp_N, "cross_entropy sum_exp_N", acc, {N});
  expect_on(device, target_N, "cross_entropy target_N", acc, {N});
  expect_on(device, targets_N, "cross_entropy targets_N", DType::i32, {N});
}

void check_cross_entropy_gradient(Device device, const Tensor& logits_NV, const ConstTensor& max_N,
                                  const ConstTensor& sum_exp_N, const ConstTensor& targets_N) {
  const int64_t N = logits_NV.size(0), V = logits_NV.size(1);
  const DType acc = accumulate_type(logits_NV.dtype());
  expect_on(device, logits_NV, "cross_entropy logits_NV", logits_NV.dtype(), {N, V});
  expect_on(device, max_N, "cross_entropy max_N", acc, {N});
  expect_on(device, sum_exp_N, "cross_entropy sum_exp_N", acc, {N});
  expect_on(device, targets_N, "cross_entropy targets_N", DType::i32, {N});
}

void check_check_step(Device device, const Tensor& step_S, const ConstTensor& sums_S, const ConstTensor& limits_S) {
  expect_on(device, step_S, "check_step: step", DType::f64, {kScalars<StepScalars>});
  expect_on(device, sums_S, "check_step: sums", DType::f64, {kScalars<StepSums>});
  expect_on(device, limits_S, "check_step: limits", DType::f64, {kScalars<StepLimits>});
}

void check_adamw(Device device, std::span<const AdamwTensor> tensors, const ConstTensor& step_S) {
  expect_on(device, step_S, "adamw: step", DType::f64, {kScalars<StepScalars>});
  for (const AdamwTensor& x : tensors) {
    const DType acc = x.master.dtype();
    const int64_t count = x.master.numel();
    for (const ConstTensor& t : {ConstTensor(x.master), ConstTensor(x.m), ConstTensor(x.v), x.grad}) {
      TM_CHECK(t.dtype() == acc && t.numel() == count && t.contiguous() && t.device() == device,
               "adamw: master, m, v and grad must be contiguous, of one type and one size on the ", place_of(device),
               "; master is ", x.master.shape(), " ", name_of(acc), ", another is ", t.shape(), " ", name_of(t.dtype()),
               " on ", name_of(t.device()));
    }
    TM_CHECK(x.param.numel() == count && x.param.contiguous() && x.param.device() == device, "adamw: param is ",
             x.param.shape(), " on ", name_of(x.param.device()), ", master is ", x.master.shape());
    TM_CHECK(acc == DType::f32 || acc == DType::f64, "adamw: master is ", name_of(acc),
             ", expected float32 or float64");
  }
}

}  // namespace tmamba
