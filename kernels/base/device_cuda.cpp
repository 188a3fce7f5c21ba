// The CUDA half of device.h: the only cudaMalloc of the project.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>

#include "kernels/base/device.h"

namespace tmamba {

namespace {
void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw Error(str(what, ": ", cudaGetErrorString(status)));
}
}  // namespace

namespace {

// Four groups of bytes and a fifth, "GPU-8c1f0a2b-....".
std::string uuid_text(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (int i = 0; i < 16; ++i) {
    std::array<char, 3> byte{};
    std::snprintf(byte.data(), byte.size(), "%02x", static_cast<unsigned>(static_cast<unsigned char>(uuid.bytes[i])));
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += byte.data();
  }
  return text;
}

}  // namespace

std::vector<GpuIdentity> visible_gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return {};
  }
  std::vector<GpuIdentity> gpus;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    std::array<char, 32> pci{};
    check(cudaDeviceGetPCIBusId(pci.data(), static_cast<int>(pci.size()), device), "cudaDeviceGetPCIBusId");
    // Lower case, as in sysfs.
    std::transform(pci.begin(), pci.end(), pci.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    gpus.push_back({.name = properties.name, .uuid = uuid_text(properties.uuid), .pci = pci.data()});
  }
  return gpus;
}

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
