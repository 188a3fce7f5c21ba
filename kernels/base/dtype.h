// Element types, and the only switch over them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/base/check.h"

namespace tmamba {

enum class DType : uint8_t { f32, f64, bf16, i32, i64, u16, u8 };

// Storage of a bfloat16 number on the host; arithmetic happens in float.
struct bf16_t {
  uint16_t bits;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<bf16_t> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<uint16_t> {
  static constexpr DType value = DType::u16;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::u16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::bf16:
      return "bfloat16";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::u16:
      return "uint16";
    case DType::u8:
      return "uint8";
  }
  return "unknown";
}

// The type with name_of(dtype) == name; throws Error for any other name.
inline DType dtype_named(const std::string& name) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::u16, DType::u8}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw Error(str("unknown element type \"", name, "\""));
}

// Type of statistics, states, decays and gradient sums beside activations of type `activation`:
// float64 beside float64, float32 beside everything else.
constexpr DType accumulate_type(DType activation) { return activation == DType::f64 ? DType::f64 : DType::f32; }

// Calls f.template operator()<T>() with T = float or double.
template <class F>
decltype(auto) dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::f64:
      return f.template operator()<double>();
    default:
      throw Error(str("expected float32 or float64, got ", name_of(dtype)));
  }
}

}  // namespace tmamba
