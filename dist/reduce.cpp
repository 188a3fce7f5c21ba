#include "dist/reduce.h"

#include <algorithm>
#include <bit>
#include <type_traits>

namespace tmamba {

namespace {

constexpr int64_t kBlock = 1024;

float widen(bf16_t x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
template <class T>
T widen(T x) {
  return x;
}

bf16_t round_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};  // the carry of rounding must not make it infinite
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

template <ReduceOp op, class T>
T combine(T a, T b) {
  if constexpr (op == ReduceOp::sum) {
    if constexpr (std::is_signed_v<T> && std::is_integral_v<T>) {
      using Unsigned = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));  // wraps
    } else {
      return static_cast<T>(a + b);
    }
  } else {
    if (a != a) return a;
    if (b != b) return b;
    if constexpr (op == ReduceOp::max) return a < b ? b : a;
    return b < a ? b : a;
  }
}

// In blocks, so that the accumulator stays in the first-level cache and each input is read once.
template <ReduceOp op, class T>
void reduce_typed(void* out, std::span<const void* const> inputs, int64_t count) {
  using Accumulator = decltype(widen(T{}));
  Accumulator sum[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    const T* first = static_cast<const T*>(inputs[0]) + begin;
    for (int64_t i = 0; i < n; ++i) sum[i] = widen(first[i]);
    for (const void* input : inputs.subspan(1)) {
      const T* x = static_cast<const T*>(input) + begin;
      for (int64_t i = 0; i < n; ++i) sum[i] = combine<op>(sum[i], widen(x[i]));
    }
    T* y = static_cast<T*>(out) + begin;
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<T, bf16_t>) {
        y[i] = round_to_bf16(sum[i]);
      } else {
        y[i] = sum[i];
      }
    }
  }
}

template <ReduceOp op>
void reduce_any(DType dtype, void* out, std::span<const void* const> inputs, int64_t count) {
  switch (dtype) {
    case DType::f32:
      return reduce_typed<op, float>(out, inputs, count);
    case DType::f64:
      return reduce_typed<op, double>(out, inputs, count);
    case DType::bf16:
      return reduce_typed<op, bf16_t>(out, inputs, count);
    case DType::i32:
      return reduce_typed<op, int32_t>(out, inputs, count);
    case DType::i64:
      return reduce_typed<op, int64_t>(out, inputs, count);
    case DType::u16:
      return reduce_typed<op, uint16_t>(out, inputs, count);
    case DType::u8:
      return reduce_typed<op, uint8_t>(out, inputs, count);
  }
}

}  // namespace

void reduce_in_order(ReduceOp op, DType dtype, void* out, std::span<const void* const> inputs, int64_t count) {
  switch (op) {
    case ReduceOp::sum:
      return reduce_any<ReduceOp::sum>(dtype, out, inputs, count);
    case ReduceOp::max:
      return reduce_any<ReduceOp::max>(dtype, out, inputs, count);
    case ReduceOp::min:
      return reduce_any<ReduceOp::min>(dtype, out, inputs, count);
  }
}

}  // namespace tmamba
