// class Snapshot: host copies of what a rank saves, in one buffer that is allocated once and used by every save.
#pragma once

#include "kernels/base/buffer.h"

namespace tmamba {

class Snapshot {
 public:
  // Of tensors on `device`: what it copies to is pinned.
  explicit Snapshot(Device device) : device_(device) {}
  ~Snapshot();
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  // Where x [1 or 2 sizes, contiguous, any device] may be read from after it has changed. The copy is done on return.
  // Before the first clear() nothing is copied, only counted, and what comes back has no data.
  Tensor copy(const Tensor& x);
  // Forgets all copies and allocates what was counted, once. Throws Error where the host has not that much memory.
  void clear();
  // Of the buffer; before the first clear(), as much as was counted.
  int64_t bytes() const { return static_cast<int64_t>(arena_.peak()); }
  bool allocated() const { return !arena_.measuring(); }

 private:
  Device device_;
  Arena arena_{Device::cpu};
  void* pinned_ = nullptr;
};

}  // namespace tmamba
