// Elementary functions written without branches or calls, so that loops over them vectorise.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace tmamba {

// Rows of scores are padded to this many elements, so that a masked row ends on a whole vector and not in a scalar
// rest, which would cost as much as the row.
inline constexpr int64_t kLanes = 16;

// e^x within 2 units in the last place. Below -87.3 (where e^x is no normal number) it is 0, above 88.3 infinity.
// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2; e^r by a minimax polynomial of degree 7.
inline float fast_exp(float x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // n * kLn2High is exact
  constexpr float kRound = 12582912.0f;                                // adding 1.5 * 2^23 rounds to an integer
  const float shifted = x * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  // The low bits of `shifted` hold n; moved to the exponent they make 2^n.
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3F800000u);
  const float value = p * power;
  const float capped = x > 88.3f ? std::numeric_limits<float>::infinity() : value;
  return x < -87.3f ? 0.0f : capped;
}

inline double fast_exp(double x) { return std::exp(x); }

// 1 / (1 + e^-x)
template <class T>
inline T sigmoid(T x) {
  return T(1) / (T(1) + fast_exp(-x));
}

// log(1 + e^x)
template <class T>
inline T softplus(T x) {
  return std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}

}  // namespace tmamba
