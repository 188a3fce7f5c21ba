// Raw memory of a device. One implementation per device; CMake picks which are built.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"

namespace tmamba {

// Zero-filled memory, aligned to 256 bytes; throws Error with the bytes asked for and the bytes free.
void* device_allocate(size_t bytes, Device device);
void device_free(void* data, Device device) noexcept;
// Blocking copy of `bytes` between any two devices.
void device_copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes);

struct DeviceMemory {
  size_t free = 0, total = 0;
};
// Bytes that could be allocated now, and that the device has: of a GPU the one this thread uses, of a host at most what
// its control group (a container, a batch job) may take. The largest number where a host does not tell.
DeviceMemory device_memory(Device device);
// Memory of the host, read from /proc and /sys below `root`.
DeviceMemory host_memory(const std::string& root = "");

// A GPU that this process can see, in the order of their numbers.
struct GpuIdentity {
  std::string name;  // "NVIDIA H200"
  std::string uuid;  // "GPU-8c1f...", as nvidia-smi prints it
  std::string pci;   // "0000:3b:00.0"
};
// None in a build without CUDA and where there is no driver.
std::vector<GpuIdentity> visible_gpus();

// Locks host memory where it is, so that a device copies from and to it at full speed. Throws Error where the system
// refuses. Nothing to do without a device: `device` is the one that will copy.
void pin_host_memory(void* data, size_t bytes, Device device);
void unpin_host_memory(void* data, Device device) noexcept;

// The CUDA half of the above; in a build without CUDA each throws UserError saying how to build with it.
void* cuda_allocate(size_t bytes);
void cuda_free(void* data) noexcept;
void cuda_copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes);
DeviceMemory cuda_memory();
void cuda_pin(void* data, size_t bytes);
void cuda_unpin(void* data) noexcept;

}  // namespace tmamba
