#include "launch/state/snapshot.h"

#include "kernels/base/device.h"

namespace tmamba {

Snapshot::~Snapshot() {
  if (pinned_ != nullptr) unpin_host_memory(pinned_, device_);
}

Tensor Snapshot::copy(const Tensor& x) {
  const Tensor host =
      x.dims() == 1 ? arena_.take({x.size(0)}, x.dtype()) : arena_.take({x.size(0), x.size(1)}, x.dtype());
  if (allocated()) copy_blocking(host, x);
  return host;
}

void Snapshot::clear() {
  if (allocated()) return arena_.rewind(0);
  const size_t bytes = arena_.peak();
  arena_ = Arena(bytes, Device::cpu);
  if (bytes == 0 || device_ == Device::cpu) return;
  void* begin = arena_.take({static_cast<int64_t>(bytes)}, DType::u8).raw();
  arena_.rewind(0);
  pin_host_memory(begin, bytes, device_);
  pinned_ = begin;
}

}  // namespace tmamba
