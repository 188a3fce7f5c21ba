// Combines two terms of a reduction, on host and device.
#pragma once

#include <type_traits>

#include "dist/comm/communicator.h"

namespace tmamba {

template <ReduceOp op, class T>
constexpr T combine(T a, T b) {
  if constexpr (op == ReduceOp::sum) {
    if constexpr (std::is_signed_v<T> && std::is_integral_v<T>) {
      using Unsigned = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));  // wraps around
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

}  // namespace tmamba
