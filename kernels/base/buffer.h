// Owners of device memory: Buffer (one allocation) and Arena (many tensors planned into one Buffer).
#pragma once

#include <cstddef>
#include <initializer_list>

#include "kernels/base/tensor.h"

namespace tmamba {

// One allocation, zero-filled, aligned to 256 bytes. Move-only; views of it must not outlive it.
class Buffer {
 public:
  Buffer() = default;
  // Throws Error naming the bytes asked for when the device has not that much memory.
  Buffer(size_t bytes, Device device);
  Buffer(std::initializer_list<int64_t> sizes, DType dtype, Device device = Device::cpu);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

  // View of the first elements with these sizes; throws where they do not fit.
  Tensor tensor(std::initializer_list<int64_t> sizes, DType dtype) const;

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_ = Device::cpu;
};

// Hands out tensors from one buffer, back to back, at addresses fixed for the run. A measuring arena has no memory:
// it hands out views without data and counts the bytes, so that the same code plans and allocates.
class Arena {
 public:
  // A measuring arena.
  explicit Arena(Device device) : device_(device), measuring_(true) {}
  // An arena with `bytes` of memory.
  Arena(size_t bytes, Device device) : buffer_(bytes, device), device_(device) {}

  // A contiguous tensor; its content is undefined. Throws where the arena is full.
  Tensor take(std::initializer_list<int64_t> sizes, DType dtype);

  bool measuring() const { return measuring_; }
  size_t used() const { return used_; }
  // Largest used() so far.
  size_t peak() const { return peak_; }
  // Gives back everything taken since used() was `mark`.
  void rewind(size_t mark) { used_ = mark; }
  Device device() const { return device_; }

 private:
  Buffer buffer_;
  Device device_;
  bool measuring_ = false;
  size_t used_ = 0;
  size_t peak_ = 0;
};

// Copies a contiguous tensor to another of the same size and type, on any devices, and waits for it.
void copy_blocking(const Tensor& to, const ConstTensor& from);

}  // namespace tmamba
