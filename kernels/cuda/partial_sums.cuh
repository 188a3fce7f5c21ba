// The second stage of sums over rows (gradients of parameters): each block has left one line of partial sums; the lines
// are added in order.
#pragma once

#include "kernels/cuda/device.cuh"

namespace tmamba::cuda {

// How many lines the first stage leaves for `rows` rows: a function of sizes alone, so that bits are.
inline int64_t partial_lines(int64_t rows, int64_t rows_per_line, int64_t most = 264) {
  return std::min(most, ceil_div(rows, rows_per_line));
}

// Where column i of a line goes: [rows, cols] of the output at any strides.
template <class T>
struct SumTarget {
  T* data;
  int64_t cols, row_stride, col_stride;
  __device__ T* at(int64_t i) const { return data + i / cols * row_stride + i % cols * col_stride; }
};

inline constexpr int kSumCols = 32;

// *out.at(i) += sum over lines of partial[line * pitch + i], i < width. kRows threads share the lines of a column.
template <int kRows, class T, class Target>
__global__ void __launch_bounds__(kSumCols* kRows)
    add_lines_kernel(Target out, const T* partial, int64_t lines, int64_t width, int64_t pitch) {
  __shared__ T sums[kRows][kSumCols];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumCols + threadIdx.x;
  T sum = 0;
  if (i < width) {
#pragma unroll 8
    for (int64_t line = threadIdx.y; line < lines; line += kRows) sum += partial[line * pitch + i];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= width) return;
  for (int row = 1; row < kRows; ++row) sum += sums[row][threadIdx.x];
  *out.at(i) += sum;
}

template <class T, class Target>
void add_lines(cudaStream_t stream, const Target& out, const T* partial, int64_t lines, int64_t width,
               int64_t pitch = 0) {
  constexpr int kFew = 8, kMany = 32;
  const bool many = lines >= 256;
  const auto kernel = many ? add_lines_kernel<kMany, T, Target> : add_lines_kernel<kFew, T, Target>;
  launch(stream, {ceil_div(width, kSumCols)}, dim3(kSumCols, many ? kMany : kFew), 0, kernel, out, partial, lines,
         width, pitch == 0 ? width : pitch);
}

}  // namespace tmamba::cuda
