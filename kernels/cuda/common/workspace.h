// Workspace: device memory for what an op keeps between its own kernels. It grows at the first op that needs more and
// never shrinks; one stream orders its users, so each op takes it from the start.
#pragma once

#include <array>

#include "kernels/base/buffer.h"
#include "kernels/cuda/common/stream.h"

namespace tmamba::cuda {

class Workspace {
 public:
  explicit Workspace(const Stream& stream) : stream_(stream) {}

  // Pieces of these sizes in bytes, each aligned to 256, valid until the next call.
  template <size_t N>
  std::array<char*, N> take(const std::array<size_t, N>& bytes) {
    size_t total = 0;
    for (size_t size : bytes) total += padded(size);
    reserve(total);
    std::array<char*, N> pieces;
    char* next = static_cast<char*>(buffer_.data());
    for (size_t i = 0; i < N; ++i) pieces[i] = next, next += padded(bytes[i]);
    return pieces;
  }

  // `count` numbers of type T.
  template <class T>
  T* take(int64_t count) {
    return reinterpret_cast<T*>(take(std::array{sizeof(T) * static_cast<size_t>(count)})[0]);
  }

  // Grows to at least this many bytes; throws where the workspace is fixed and smaller.
  void reserve(size_t bytes);

  size_t bytes() const { return buffer_.bytes(); }
  const void* data() const { return buffer_.data(); }

  // A captured graph holds the workspace's address. While it is fixed, it throws rather than move.
  void fix(bool fixed) { fixed_ = fixed; }

 private:
  static size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

  const Stream& stream_;
  Buffer buffer_;
  bool fixed_ = false;
};

}  // namespace tmamba::cuda
