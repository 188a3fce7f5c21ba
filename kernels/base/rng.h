// Counter-based random numbers: a pure function of (key, counter), so that any slice of a tensor can be initialised,
// and any sample drawn, on any rank without a state to carry. Philox 4x32-10 (Salmon et al., SC 2011).
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace tmamba {

class Philox {
 public:
  // `seed` and `stream` make the key; two streams of one seed are independent.
  constexpr Philox(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  // Four 32-bit random words for this counter.
  constexpr std::array<uint32_t, 4> words(uint64_t counter) const {
    std::array<uint32_t, 4> c{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                              static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)};
    uint32_t k0 = static_cast<uint32_t>(seed_), k1 = static_cast<uint32_t>(seed_ >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
      c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
           static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return c;
  }

  // Uniform in [0, 1) with 53 bits.
  constexpr double uniform(uint64_t counter) const {
    const auto w = words(counter);
    const uint64_t bits = (uint64_t{w[0]} << 32 | w[1]) >> 11;
    return static_cast<double>(bits) * 0x1p-53;
  }

  // Standard normal (Box-Muller).
  double normal(uint64_t counter) const {
    const auto w = words(counter);
    const double u = (static_cast<double>((uint64_t{w[0]} << 32 | w[1]) >> 11) + 1.0) * 0x1p-53;  // (0, 1]
    const double v = static_cast<double>((uint64_t{w[2]} << 32 | w[3]) >> 11) * 0x1p-53;
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
  }

 private:
  uint64_t seed_;
  uint64_t stream_;
};

// 64-bit FNV-1a: names a random stream by a string, the same on every machine.
constexpr uint64_t stream_id(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace tmamba
