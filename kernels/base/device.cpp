#include "kernels/base/device.h"

#include <cstdlib>
#include <cstring>

namespace tmamba {

namespace {
constexpr size_t kAlignment = 256;
}

DeviceMemory device_memory(Device device) { return device == Device::cuda ? cuda_memory() : host_memory(); }

void* device_allocate(size_t bytes, Device device) {
  if (bytes == 0) return nullptr;
  if (device == Device::cuda) return cuda_allocate(bytes);
  const size_t padded = static_cast<size_t>(round_up(static_cast<int64_t>(bytes), kAlignment));
  void* data = std::aligned_alloc(kAlignment, padded);
  if (data == nullptr) throw Error(str("out of host memory: ", bytes, " bytes were asked for"));
  std::memset(data, 0, padded);
  return data;
}

void device_free(void* data, Device device) noexcept {
  if (device == Device::cuda) {
    cuda_free(data);
  } else {
    std::free(data);
  }
}

void pin_host_memory(void* data, size_t bytes, Device device) {
  if (device == Device::cuda && bytes > 0) cuda_pin(data, bytes);
}

void unpin_host_memory(void* data, Device device) noexcept {
  if (device == Device::cuda) cuda_unpin(data);
}

void device_copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (bytes == 0) return;
  if (to_device == Device::cpu && from_device == Device::cpu) {
    std::memmove(to, from, bytes);
  } else {
    cuda_copy(to, to_device, from, from_device, bytes);
  }
}

}  // namespace tmamba
