// The CUDA half of device.h: the only cudaMalloc of the project.
#include <cuda_runtime_api.h>

#include "kernels/base/device.h"

namespace tmamba {

namespace {
void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw Error(str(what, ": ", cudaGetErrorString(status)));
}
}  // namespace

void* cuda_allocate(size_t bytes) {
  void* data = nullptr;
  if (cudaMalloc(&data, bytes) != cudaSuccess) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    throw Error(str("out of GPU memory: ", bytes, " bytes were asked for, ", free, " of ", total, " are free"));
  }
  check(cudaMemset(data, 0, bytes), "cudaMemset");
  return data;
}

void cuda_free(void* data) noexcept { cudaFree(data); }

void cuda_copy(void* to, Device, const void* from, Device, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}

void cuda_pin(void* data, size_t bytes) {
  check(cudaHostRegister(data, bytes, cudaHostRegisterPortable), "cudaHostRegister");
}

void cuda_unpin(void* data) noexcept { cudaHostUnregister(data); }

}  // namespace tmamba
