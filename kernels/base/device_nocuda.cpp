// The CUDA half of device.h in a build without CUDA.
#include "kernels/base/device.h"

namespace tmamba {

namespace {
[[noreturn]] void no_cuda() {
  throw UserError("this build has no CUDA; build with -DTMAMBA_CUDA=ON, or set run.device = \"cpu\"");
}
}  // namespace

std::vector<GpuIdentity> visible_gpus() { return {}; }

void* cuda_allocate(size_t) { no_cuda(); }
void cuda_free(void*) noexcept {}
void cuda_copy(void*, Device, const void*, Device, size_t) { no_cuda(); }
DeviceMemory cuda_memory() { no_cuda(); }
void cuda_pin(void*, size_t) { no_cuda(); }
void cuda_unpin(void*) noexcept {}

}  // namespace tmamba
