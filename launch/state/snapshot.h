// class Snapshot: host copies of the tensors that a rank saves, in one buffer that is allocated once and reused.
#pragma once

#include "kernels/base/buffer.h"

namespace tmamba {

class Snapshot {
 public:
  // Copies tensors of `device`, into pinned memory.
  explicit Snapshot(Device device) : device_(device) {}
  ~Snapshot();
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  // Returns a copy of x (1 or 2 dimensions, contiguous, any device), complete on return. Before the first clear() it
  // only counts bytes and returns a tensor without data.
  Tensor copy(const Tensor& x);
  // Discards all copies; the first call allocates the bytes counted. Throws Error if the host has too little memory.
  void clear();
  // Size of the buffer; before the first clear(), the bytes counted so far.
  int64_t bytes() const { return static_cast<int64_t>(arena_.peak()); }
  bool allocated() const { return !arena_.measuring(); }

 private:
  Device device_;
  Arena arena_{Device::cpu};
  void* pinned_ = nullptr;
};

}  // namespace tmamba
