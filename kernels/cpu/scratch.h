// Scratch memory of one thread: a stack of blocks that grows to what the largest op needs and is then reused.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tmamba {

// Memory taken through a frame is released when the frame ends. Frames of one thread end in reverse order. The memory
// is aligned to 64 bytes and not initialised.
class ScratchFrame {
 public:
  ScratchFrame();
  ~ScratchFrame();
  ScratchFrame(const ScratchFrame&) = delete;
  ScratchFrame& operator=(const ScratchFrame&) = delete;

  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }
  template <class T>
  T* take_zeros(int64_t count) {
    T* out = take<T>(count);
    for (int64_t i = 0; i < count; ++i) out[i] = T{};
    return out;
  }

 private:
  void* take_bytes(size_t bytes);

  size_t block_, used_;  // where the stack stood when the frame began
};

}  // namespace tmamba
