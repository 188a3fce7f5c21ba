// The second stage of sums over rows (gradients of parameters): each block of the first stage has stored one row of
// partial sums; these rows are added in a fixed order.
#pragma once

#include "kernels/cuda/common/device.cuh"

namespace tmamba::cuda {

// How many partial rows the first stage stores for `rows` rows. Depends on sizes only, and so does the result's
// rounding.
inline int64_t partial_row_count(int64_t rows, int64_t rows_per_partial, int64_t most = 264) {
  return std::min(most, ceil_div(rows, rows_per_partial));
}

// Maps column i of a partial row to the output [rows, cols], which may have any strides.
template <class T>
struct SumTarget {
  T* data;
  int64_t cols, row_stride, col_stride;
  __device__ T* at(int64_t i) const { return data + i / cols * row_stride + i % cols * col_stride; }
};

// Programmatic dependent launch: every block of the first stage calls this when it starts, so that blocks of the second
// stage are scheduled as soon as there is room and wait on the SM. Only in Hopper's code.
__device__ inline void launch_dependent_grids() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Waits until the first stage has completed and its partial rows are visible.
__device__ inline void wait_on_dependent_grids() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Launches the second stage as a dependent grid, which must call wait_on_dependent_grids(). If the GPU runs code
// without that wait, the launch is an ordinary one, after the first stage.
template <class... Parameters, class... Args>
void launch_second_stage(cudaStream_t stream, Grid grid, dim3 block, void (*kernel)(Parameters...),
                         const Args&... args) {
  cudaFuncAttributes code;
  TM_CUDA(cudaFuncGetAttributes(&code, kernel));
  if (code.ptxVersion < 90) return launch(stream, grid, block, 0, kernel, args...);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x));
  config.blockDim = block, config.stream = stream, config.attrs = &early, config.numAttrs = 1;
  TM_CUDA(cudaLaunchKernelEx(&config, kernel, args...));
}

inline constexpr int kSumCols = 32;

// *out.at(i) += sum over rows of partial[row * pitch + i], i < width. kRows threads share the rows of a column.
template <int kRows, class T, class Target>
__global__ void __launch_bounds__(kSumCols* kRows)
    add_partial_rows_kernel(Target out, const T* partial, int64_t rows, int64_t width, int64_t pitch) {
  __shared__ T sums[kRows][kSumCols];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumCols + threadIdx.x;
  T* const to = i < width ? out.at(i) : nullptr;
  const T before = threadIdx.y == 0 && i < width ? *to : T(0);
  wait_on_dependent_grids();
  T sum = 0;
  if (i < width) {
#pragma unroll 16
    for (int64_t row = threadIdx.y; row < rows; row += kRows) sum += partial[row * pitch + i];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= width) return;
#pragma unroll
  for (int row = 1; row < kRows; ++row) sum += sums[row][threadIdx.x];
  *to = before + sum;
}

template <class T, class Target>
void add_partial_rows(cudaStream_t stream, const Target& out, const T* partial, int64_t rows, int64_t width,
                      int64_t pitch = 0) {
  constexpr int kFew = 8, kMany = 32;
  const bool many = rows >= 256;
  const auto kernel = many ? add_partial_rows_kernel<kMany, T, Target> : add_partial_rows_kernel<kFew, T, Target>;
  launch_second_stage(stream, {ceil_div(width, kSumCols)}, dim3(kSumCols, many ? kMany : kFew), kernel, out, partial,
                      rows, width, pitch == 0 ? width : pitch);
}

}  // namespace tmamba::cuda
