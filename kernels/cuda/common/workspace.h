// Workspace: device memory for data that an op passes between its own kernels. It grows when an op needs more and never
// shrinks. All ops run on one stream, so each op uses it from the start.
#pragma once

#include <array>

#include "kernels/base/buffer.h"
#include "kernels/cuda/common/stream.h"

namespace tmamba::cuda {

class Workspace {
 public:
  explicit Workspace(const Stream& stream) : stream_(stream) {}

  // Returns memory of these sizes in bytes, each aligned to 256 bytes, valid until the next call.
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

  // Returns memory for `count` elements of type T.
  template <class T>
  T* take(int64_t count) {
    return reinterpret_cast<T*>(take(std::array{sizeof(T) * static_cast<size_t>(count)})[0]);
  }

  // Grows to at least this many bytes; throws if the workspace is fixed and smaller.
  void reserve(size_t bytes);

  size_t bytes() const { return buffer_.bytes(); }
  const void* data() const { return buffer_.data(); }

  // While fixed, the workspace throws instead of reallocating: a graph that is being captured holds its address.
  void fix(bool fixed) { fixed_ = fixed; }

 private:
  static size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

  const Stream& stream_;
  Buffer buffer_;
  bool fixed_ = false;
};

}  // namespace tmamba::cuda
