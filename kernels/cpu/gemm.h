// Matrix products of small and large row-major tiles, one thread each, through BLAS. The split of a large product
// over threads is the caller's: BLAS is told to use one thread, so that its bits do not depend on their number.
#pragma once

#include <cstdint>

namespace tmamba {

// A row-major matrix read as it stands or transposed. `stride` is the distance of two rows in memory.
template <class T>
struct Matrix {
  const T* data;
  int64_t stride;
  bool transposed = false;
};

template <class T>
Matrix<T> transposed(const T* data, int64_t stride) {
  return {data, stride, true};
}

// c [m, n] = alpha * a [m, k] b [k, n] + beta * c. With beta = 0, c is not read.
void gemm(int64_t m, int64_t n, int64_t k, double alpha, Matrix<float> a, Matrix<float> b, double beta, float* c,
          int64_t c_stride);
void gemm(int64_t m, int64_t n, int64_t k, double alpha, Matrix<double> a, Matrix<double> b, double beta, double* c,
          int64_t c_stride);

// Makes BLAS use one thread. Called once, before the first GEMM.
void use_one_blas_thread();

}  // namespace tmamba
