#include "kernels/base/buffer.h"

#include <algorithm>
#include <utility>

#include "kernels/base/device.h"

namespace tmamba {

namespace {
constexpr size_t kAlignment = 256;

size_t bytes_of(std::initializer_list<int64_t> sizes, DType dtype) {
  size_t bytes = size_of(dtype);
  for (int64_t size : sizes) bytes *= static_cast<size_t>(size);
  return bytes;
}
}  // namespace

Buffer::Buffer(size_t bytes, Device device) : data_(device_allocate(bytes, device)), bytes_(bytes), device_(device) {}

Buffer::Buffer(std::initializer_list<int64_t> sizes, DType dtype, Device device)
    : Buffer(bytes_of(sizes, dtype), device) {}

Buffer::~Buffer() { device_free(data_, device_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

Tensor Buffer::tensor(std::initializer_list<int64_t> sizes, DType dtype) const {
  TM_CHECK(bytes_of(sizes, dtype) <= bytes_, "a tensor of ", bytes_of(sizes, dtype), " bytes does not fit a buffer of ",
           bytes_);
  return Tensor(data_, sizes, dtype, device_);
}

Tensor Arena::take(std::initializer_list<int64_t> sizes, DType dtype) {
  const size_t begin = used_;
  const size_t bytes = bytes_of(sizes, dtype);
  used_ += static_cast<size_t>(round_up(static_cast<int64_t>(bytes), kAlignment));
  peak_ = std::max(peak_, used_);
  if (measuring()) return Tensor(nullptr, sizes, dtype, device_);
  TM_CHECK(begin + bytes <= buffer_.bytes(), "arena of ", buffer_.bytes(), " bytes is full: ", bytes,
           " more were asked for");
  return Tensor(static_cast<char*>(buffer_.data()) + begin, sizes, dtype, device_);
}

void copy_blocking(const Tensor& to, const ConstTensor& from) {
  TM_CHECK(to.contiguous() && from.contiguous() && to.numel() == from.numel() && to.dtype() == from.dtype(),
           "cannot copy ", from.shape(), " ", name_of(from.dtype()), " to ", to.shape(), " ", name_of(to.dtype()));
  device_copy(to.raw(), to.device(), from.raw(), from.device(), static_cast<size_t>(from.bytes()));
}

}  // namespace tmamba
