// Tensor and ConstTensor: non-owning, strided views of device memory.
// A view is a pointer, sizes, strides (in elements), an element type and a device; it is copied by value.
#pragma once

#include <array>
#include <initializer_list>
#include <type_traits>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"

namespace tmamba {

enum class Device : uint8_t { cpu, cuda };

constexpr const char* name_of(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

template <class Void>
class TensorView {
 public:
  static constexpr int kMaxDims = 5;
  template <class T>
  using Pointer = std::conditional_t<std::is_const_v<Void>, const T, T>*;

  // The empty view: no data, no dimensions. Ops take it for "absent".
  TensorView() = default;

  // Contiguous, row-major view of `data`.
  TensorView(Void* data, std::initializer_list<int64_t> sizes, DType dtype, Device device = Device::cpu)
      : data_(data), dtype_(dtype), device_(device) {
    TM_CHECK(sizes.size() <= kMaxDims, "at most ", kMaxDims, " dimensions, got ", sizes.size());
    for (int64_t size : sizes) size_[static_cast<size_t>(dims_++)] = size;
    set_contiguous();
  }

  // Every Tensor is a ConstTensor.
  template <class Other, class = std::enable_if_t<std::is_const_v<Void> && !std::is_const_v<Other>>>
  TensorView(const TensorView<Other>& other)  // NOLINT(google-explicit-constructor): reading is always allowed
      : data_(other.raw()), dtype_(other.dtype()), device_(other.device()), dims_(other.dims()) {
    for (int i = 0; i < dims_; ++i) size_[at(i)] = other.size(i), stride_[at(i)] = other.stride(i);
  }

  bool empty() const { return data_ == nullptr; }
  int dims() const { return dims_; }
  int64_t size(int i) const { return size_[at(i)]; }
  int64_t stride(int i) const { return stride_[at(i)]; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  Void* raw() const { return data_; }

  int64_t numel() const {
    int64_t n = dims_ == 0 ? 0 : 1;
    for (int i = 0; i < dims_; ++i) n *= size(i);
    return n;
  }
  int64_t bytes() const { return numel() * static_cast<int64_t>(size_of(dtype_)); }

  // Pointer to the first element; throws where T is not the element type.
  template <class T>
  Pointer<T> data() const {
    TM_CHECK(dtype_ == DTypeOf<T>::value, "tensor ", shape(), " holds ", name_of(dtype_), ", asked for ",
             name_of(DTypeOf<T>::value));
    return static_cast<Pointer<T>>(data_);
  }

  bool contiguous() const {
    int64_t expected = 1;
    for (int i = dims_ - 1; i >= 0; --i) {
      if (size(i) != 1 && stride(i) != expected) return false;
      expected *= size(i);
    }
    return true;
  }

  // Elements [begin, begin + count) of dimension `dim`.
  TensorView slice(int dim, int64_t begin, int64_t count) const {
    TM_CHECK(begin >= 0 && count >= 0 && begin + count <= size(dim), "slice [", begin, ", ", begin + count,
             ") of dimension ", dim, " of ", shape());
    TensorView out = *this;
    out.advance(begin * stride(dim));
    out.size_[at(dim)] = count;
    return out;
  }

  // Element `index` of dimension `dim`; the dimension disappears.
  TensorView select(int dim, int64_t index) const {
    TensorView out = slice(dim, index, 1);
    for (int i = dim; i + 1 < dims_; ++i) out.size_[at(i)] = out.size(i + 1), out.stride_[at(i)] = out.stride(i + 1);
    --out.dims_;
    return out;
  }

  // The same elements, in the same order, with other sizes. The view must be contiguous.
  TensorView view(std::initializer_list<int64_t> sizes) const {
    TM_CHECK(contiguous(), "only a contiguous tensor can be viewed with other sizes, this is ", shape());
    TensorView out(data_, sizes, dtype_, device_);
    TM_CHECK(out.numel() == numel() || (out.numel() == 0 && numel() == 0), "cannot view ", shape(), " as ",
             out.shape());
    return out;
  }

  // Splits dimension `dim` in two: [.., outer * inner, ..] -> [.., outer, inner, ..].
  TensorView split(int dim, int64_t outer, int64_t inner) const {
    TM_CHECK(dims_ < kMaxDims && size(dim) == outer * inner, "cannot split dimension ", dim, " of ", shape(), " into ",
             outer, " x ", inner);
    TensorView out = *this;
    for (int i = dims_; i > dim + 1; --i) out.size_[at(i)] = size(i - 1), out.stride_[at(i)] = stride(i - 1);
    ++out.dims_;
    out.size_[at(dim)] = outer, out.stride_[at(dim)] = stride(dim) * inner;
    out.size_[at(dim + 1)] = inner, out.stride_[at(dim + 1)] = stride(dim);
    return out;
  }

  // "[2, 64, 48]", for messages.
  std::string shape() const {
    std::string text = "[";
    for (int i = 0; i < dims_; ++i) text += (i ? ", " : "") + std::to_string(size(i));
    return text + "]";
  }

 private:
  static size_t at(int i) { return static_cast<size_t>(i); }

  void set_contiguous() {
    int64_t stride = 1;
    for (int i = dims_ - 1; i >= 0; --i) stride_[at(i)] = stride, stride *= size_[at(i)];
  }

  void advance(int64_t elements) {
    using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
    if (data_) data_ = static_cast<Byte*>(data_) + elements * static_cast<int64_t>(size_of(dtype_));
  }

  Void* data_ = nullptr;
  std::array<int64_t, kMaxDims> size_{};
  std::array<int64_t, kMaxDims> stride_{};
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
  int dims_ = 0;
};

using Tensor = TensorView<void>;
using ConstTensor = TensorView<const void>;

// The element of a host scalar tensor [1].
template <class T>
T item(const ConstTensor& scalar) {
  TM_CHECK(scalar.numel() == 1 && scalar.device() == Device::cpu, "item() needs one element on the host, got ",
           scalar.shape());
  return *scalar.data<T>();
}

}  // namespace tmamba
