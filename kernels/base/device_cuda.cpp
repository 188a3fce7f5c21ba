// The CUDA half of device.h: the only cudaMalloc of the project.
#include <cuda_runtime_api.h>

#include "kernels/base/device.h"

namespace tmamba {

namespace {
void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw Error(str(what, ": ", cudaGetErrorString(status)));
}
}  // namespace

DeviceMemory cuda_memory() {
  DeviceMemory memory;
  check(cudaMemGetInfo(&memory.free, &memory.total), "cudaMemGetInfo");
  return memory;
}

void* cuda_allocate(size_t bytes) {
  void* data = nullptr;
  if (cudaMalloc(&data, bytes) != cudaSuccess) {
    cudaGetLastError();
    const DeviceMemory memory = cuda_memory();
    throw Error(
        str("out of GPU memory: ", bytes, " bytes were asked for, ", memory.free, " of ", memory.total, " are free"));
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
