// The second stage of sums over rows (gradients of parameters): each block has left one line of partial sums; the lines
// are added in order.
#pragma once

#include "kernels/cuda/common/device.cuh"

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

// Every block of a first stage calls this when it starts: the second stage may come to the multiprocessors as soon as
// they have room, and wait there for the lines. Only Hopper's code does so.
__device__ inline void let_sums_come() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Waits until the first stage is done, and its lines are there to be read.
__device__ inline void wait_for_lines() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Launches a second stage so that it may come early; it must call wait_for_lines(). Where the GPU runs code of the
// kernel that cannot wait, it comes behind the first stage.
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

// *out.at(i) += sum over lines of partial[line * pitch + i], i < width. kRows threads share the lines of a column.
template <int kRows, class T, class Target>
__global__ void __launch_bounds__(kSumCols* kRows)
    add_lines_kernel(Target out, const T* partial, int64_t lines, int64_t width, int64_t pitch) {
  __shared__ T sums[kRows][kSumCols];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumCols + threadIdx.x;
  T* const to = i < width ? out.at(i) : nullptr;
  const T before = threadIdx.y == 0 && i < width ? *to : T(0);
  wait_for_lines();
  T sum = 0;
  if (i < width) {
#pragma unroll 16
    for (int64_t line = threadIdx.y; line < lines; line += kRows) sum += partial[line * pitch + i];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= width) return;
#pragma unroll
  for (int row = 1; row < kRows; ++row) sum += sums[row][threadIdx.x];
  *to = before + sum;
}

template <class T, class Target>
void add_lines(cudaStream_t stream, const Target& out, const T* partial, int64_t lines, int64_t width,
               int64_t pitch = 0) {
  constexpr int kFew = 8, kMany = 32;
  const bool many = lines >= 256;
  const auto kernel = many ? add_lines_kernel<kMany, T, Target> : add_lines_kernel<kFew, T, Target>;
  launch_second_stage(stream, {ceil_div(width, kSumCols)}, dim3(kSumCols, many ? kMany : kFew), kernel, out, partial,
                      lines, width, pitch == 0 ? width : pitch);
}

}  // namespace tmamba::cuda
