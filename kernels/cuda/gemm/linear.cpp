// y = x w^T and its gradients. cublasLt is column-major: it sees a row-major [rows, cols] as [cols, rows]. Therefore
// each GEMM computes the transposed output.
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

// The row pitch; a single row's stride may be invalid.
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

void CudaOps::linear_forward(const LinearForward& args) {
  const int64_t N = args.x_NI.size(0), I = args.x_NI.size(1), O = args.w_OI.size(0);
  check_args(Device::cuda, args);
  if (N * O == 0) return;
  if (I == 0) return fill({args.y_NO, 0});
  gemm_.run(problem_of(args.w_OI, true, args.x_NI, false, args.y_NO, I, false), args.w_OI.raw(), args.x_NI.raw(),
            args.y_NO.raw());
}

void CudaOps::linear_backward_input(const LinearBackwardInput& args) {
  const int64_t N = args.dy_NO.size(0), O = args.dy_NO.size(1), I = args.w_OI.size(1);
  check_args(Device::cuda, args);
  if (N * I == 0) return;
  if (O == 0) {
    if (!args.accumulate) fill({args.dx_NI, 0});
    return;
  }
  gemm_.run(problem_of(args.w_OI, false, args.dy_NO, false, args.dx_NI, O, args.accumulate), args.w_OI.raw(),
            args.dy_NO.raw(), args.dx_NI.raw());
}

void CudaOps::linear_backward_weight(const LinearBackwardWeight& args) {
  const int64_t N = args.dy_NO.size(0), O = args.dy_NO.size(1), I = args.x_NI.size(1);
  check_args(Device::cuda, args);
  if (N * O * I == 0) return;
  gemm_.run(problem_of(args.x_NI, false, args.dy_NO, true, args.dw_OI, N, true), args.x_NI.raw(), args.dy_NO.raw(),
            args.dw_OI.raw());
}

}  // namespace tmamba::cuda
