#include "data/checkpoint/element_convert.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/base/bf16.h"

namespace tmamba {

namespace {

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16; }

bf16_t rounded(float x) { return to_bf16(x); }
bf16_t rounded(double x) {
  // Round to odd as the step to float: rounding to nearest twice (double rounding) could be off by one ulp.
  float y = static_cast<float>(x);
  if (!std::isnan(x) && static_cast<double>(y) != x) {
    uint32_t bits = std::bit_cast<uint32_t>(y);
    if (std::abs(static_cast<double>(y)) > std::abs(x)) --bits;
    y = std::bit_cast<float>(bits | 1);
  }
  return to_bf16(y);
}

template <class To, class From>
To converted(From x) {
  if constexpr (std::is_same_v<To, bf16_t>) {
    return rounded(x);
  } else if constexpr (std::is_same_v<From, bf16_t>) {
    return static_cast<To>(to_float(x));
  } else {
    return static_cast<To>(x);
  }
}

template <class To, class From>
void convert(void* to, const void* from, int64_t count) {
  auto* out = static_cast<char*>(to);
  const auto* in = static_cast<const char*>(from);
  for (int64_t i = 0; i < count; ++i, out += sizeof(To), in += sizeof(From)) {
    From x;
    std::memcpy(&x, in, sizeof x);
    const To y = converted<To>(x);
    std::memcpy(out, &y, sizeof y);
  }
}

}  // namespace

bool convertible(DType from, DType to) { return from == to || (is_float(from) && is_float(to)); }

void convert_elements(void* to, DType to_type, const void* from, DType from_type, int64_t count) {
  if (to_type == from_type) {
    std::memcpy(to, from, static_cast<size_t>(count) * size_of(to_type));
  } else if (to_type == DType::f32 && from_type == DType::f64) {
    convert<float, double>(to, from, count);
  } else if (to_type == DType::f32 && from_type == DType::bf16) {
    convert<float, bf16_t>(to, from, count);
  } else if (to_type == DType::f64 && from_type == DType::f32) {
    convert<double, float>(to, from, count);
  } else if (to_type == DType::f64 && from_type == DType::bf16) {
    convert<double, bf16_t>(to, from, count);
  } else if (to_type == DType::bf16 && from_type == DType::f32) {
    convert<bf16_t, float>(to, from, count);
  } else if (to_type == DType::bf16 && from_type == DType::f64) {
    convert<bf16_t, double>(to, from, count);
  } else {
    throw Error(str("elements stored as ", name_of(from_type), " cannot be read as ", name_of(to_type)));
  }
}

}  // namespace tmamba
