#include "kernels/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <limits>

#include "kernels/base/check.h"

namespace tmamba {

namespace {

blasint to_blas(int64_t n) {
  TM_CHECK(n >= 0 && n <= std::numeric_limits<blasint>::max(), "matrix of size or row stride ", n,
           " is too large for this BLAS");
  return static_cast<blasint>(n);
}

CBLAS_TRANSPOSE order(bool transposed) { return transposed ? CblasTrans : CblasNoTrans; }

// The stride of a one-row matrix is never used, but BLAS wants it to be at least the row's length.
template <class T>
blasint leading(const Matrix<T>& x, int64_t rows, int64_t cols) {
  return to_blas(std::max<int64_t>({1, x.stride, x.transposed ? rows : cols}));
}

template <class T, class Gemm>
void run(Gemm blas_gemm, int64_t m, int64_t n, int64_t k, double alpha, const Matrix<T>& a, const Matrix<T>& b,
         double beta, T* c, int64_t c_stride) {
  if (m == 0 || n == 0) return;
  blas_gemm(CblasRowMajor, order(a.transposed), order(b.transposed), to_blas(m), to_blas(n), to_blas(k),
            static_cast<T>(alpha), a.data, leading(a, m, k), b.data, leading(b, k, n), static_cast<T>(beta), c,
            to_blas(std::max<int64_t>({1, c_stride, n})));
}

}  // namespace

void gemm(int64_t m, int64_t n, int64_t k, double alpha, Matrix<float> a, Matrix<float> b, double beta, float* c,
          int64_t c_stride) {
  run<float>(cblas_sgemm, m, n, k, alpha, a, b, beta, c, c_stride);
}

void gemm(int64_t m, int64_t n, int64_t k, double alpha, Matrix<double> a, Matrix<double> b, double beta, double* c,
          int64_t c_stride) {
  run<double>(cblas_dgemm, m, n, k, alpha, a, b, beta, c, c_stride);
}

void use_one_blas_thread() { openblas_set_num_threads(1); }

}  // namespace tmamba
