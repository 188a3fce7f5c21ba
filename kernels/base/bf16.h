// bfloat16 on the host: storage only, for copies, checkpoints and sums over ranks.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace tmamba {

inline float to_float(bf16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// Rounds to the nearest, ties to even; a NaN stays one.
inline bf16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
}

}  // namespace tmamba
