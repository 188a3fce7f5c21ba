// y = x w^T and its gradients. cublasLt is column-major, where a row-major [rows, cols] is a [cols, rows]: every
// product is written for the transposed output.
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops/op_checks.h"

namespace tmamba::cuda {

namespace {

// The distance of two rows; of a single row it may be anything.
int64_t pitch_of(const ConstTensor& x) { return x.size(0) > 1 ? x.stride(0) : x.size(1); }

GemmProblem problem_of(const ConstTensor& a, bool transpose_a, const ConstTensor& b, bool transpose_b,
                       const Tensor& out, int64_t contracted, bool accumulate) {
  return {.in = a.dtype(),
          .out = out.dtype(),
          .transpose_a = transpose_a,
          .transpose_b = transpose_b,
          .accumulate = accumulate,
          .m = out.size(1),
          .n = out.size(0),
          .k = contracted,
          .pitch_a = pitch_of(a),
          .pitch_b = pitch_of(b),
          .pitch_out = pitch_of(out),
          .align_a = alignment_of(a.raw(), pitch_of(a), a.dtype()),
          .align_b = alignment_of(b.raw(), pitch_of(b), b.dtype()),
          .align_out = alignment_of(out.raw(), pitch_of(out), out.dtype())};
}

}  // namespace

void CudaOps::linear_forward(Tensor y_NO, ConstTensor x_NI, ConstTensor w_OI) {
  const int64_t N = x_NI.size(0), I = x_NI.size(1), O = w_OI.size(0);
  check_linear_forward(Device::cuda, y_NO, x_NI, w_OI);
  if (N * O == 0) return;
  if (I == 0) return fill(y_NO, 0);
  gemm_.run(problem_of(w_OI, true, x_NI, false, y_NO, I, false), w_OI.raw(), x_NI.raw(), y_NO.raw());
}

void CudaOps::linear_backward_input(Tensor dx_NI, ConstTensor dy_NO, ConstTensor w_OI, bool accumulate) {
  const int64_t N = dy_NO.size(0), O = dy_NO.size(1), I = w_OI.size(1);
  check_linear_backward_input(Device::cuda, dx_NI, dy_NO, w_OI);
  if (N * I == 0) return;
  if (O == 0) {
    if (!accumulate) fill(dx_NI, 0);
    return;
  }
  gemm_.run(problem_of(w_OI, false, dy_NO, false, dx_NI, O, accumulate), w_OI.raw(), dy_NO.raw(), dx_NI.raw());
}

void CudaOps::linear_backward_weight(Tensor dw_OI, ConstTensor dy_NO, ConstTensor x_NI) {
  const int64_t N = dy_NO.size(0), O = dy_NO.size(1), I = x_NI.size(1);
  check_linear_backward_weight(Device::cuda, dw_OI, dy_NO, x_NI);
  if (N * O * I == 0) return;
  gemm_.run(problem_of(x_NI, false, dy_NO, true, dw_OI, N, true), x_NI.raw(), dy_NO.raw(), dw_OI.raw());
}

}  // namespace tmamba::cuda
