// TM_CUDA and TM_CUBLAS wrap every call of the CUDA runtime and of cublasLt: a failure throws Error.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "kernels/base/check.h"

namespace tmamba::cuda {

inline void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, so that later calls do not report it again
  throw Error(str(file, ":", line, ": ", call, ": ", cudaGetErrorString(status)));
}

inline void check_cublas(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(str(file, ":", line, ": ", call, ": ", cublasLtGetStatusString(status)));
}

}  // namespace tmamba::cuda

#define TM_CUDA(call) ::tmamba::cuda::check_cuda(call, #call, __FILE__, __LINE__)
#define TM_CUBLAS(call) ::tmamba::cuda::check_cublas(call, #call, __FILE__, __LINE__)
