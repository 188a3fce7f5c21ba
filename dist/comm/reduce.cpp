#include "dist/comm/reduce.h"

#include <algorithm>
#include <type_traits>

#include "dist/comm/combine.h"
#include "kernels/base/bf16.h"

namespace tmamba {

namespace {

constexpr int64_t kBlock = 1024;

float widen(bf16_t x) { return to_float(x); }
template <class T>
T widen(T x) {
  return x;
}

// In blocks, so that the accumulator stays in the L1 cache and each input is read once.
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
        y[i] = to_bf16(sum[i]);
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
