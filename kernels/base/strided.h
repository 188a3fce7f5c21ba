// Typed pointers with strides, for loops over tensors on the host and in CUDA kernels (constexpr functions run in
// both).
#pragma once

#include "kernels/base/tensor.h"

namespace tmamba {

// [N, C], rows at any distance.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  constexpr T* operator[](int64_t row) const { return data + row * stride; }
};

// [B, T, C] rows or [B, T, H] scalars.
template <class T>
struct Planes {
  T* data = nullptr;
  int64_t b = 0, t = 0;
  constexpr T* at(int64_t b_index, int64_t t_index) const { return data + b_index * b + t_index * t; }
};

// [B, T, H, D] or [B, H, K, D].
template <class T>
struct Cubes {
  T* data = nullptr;
  int64_t b = 0, t = 0, h = 0;
  constexpr T* at(int64_t b_index, int64_t t_index, int64_t h_index) const {
    return data + b_index * b + t_index * t + h_index * h;
  }
};

template <class T>
Rows<T> rows(const Tensor& x) {
  if (x.empty()) return {};
  return {x.data<T>(), x.stride(0)};
}
template <class T>
Rows<const T> rows(const ConstTensor& x) {
  if (x.empty()) return {};
  return {x.data<T>(), x.stride(0)};
}
template <class T>
Planes<T> planes(const Tensor& x) {
  if (x.empty()) return {};
  return {x.data<T>(), x.stride(0), x.stride(1)};
}
template <class T>
Planes<const T> planes(const ConstTensor& x) {
  if (x.empty()) return {};
  return {x.data<T>(), x.stride(0), x.stride(1)};
}
template <class T>
Cubes<T> cubes(const Tensor& x) {
  if (x.empty()) return {};
  return {x.data<T>(), x.stride(0), x.stride(1), x.stride(2)};
}
template <class T>
Cubes<const T> cubes(const ConstTensor& x) {
  if (x.empty()) return {};
  return {x.data<T>(), x.stride(0), x.stride(1), x.stride(2)};
}

// The pointer of a vector, or null where it is absent.
template <class T>
T* vector_of(const Tensor& x) {
  return x.empty() ? nullptr : x.data<T>();
}
template <class T>
const T* vector_of(const ConstTensor& x) {
  return x.empty() ? nullptr : x.data<T>();
}

}  // namespace tmamba
