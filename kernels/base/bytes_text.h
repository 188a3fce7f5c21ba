// Amounts of memory and data as text, in powers of 1024. Rates of links and devices are in powers of 1000 (GB/s).
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>

namespace tmamba {

inline constexpr double kGiB = 1 << 30;

// "1.50 GiB"
inline std::string bytes_text(int64_t bytes) {
  constexpr std::array<const char*, 6> units{"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto x = static_cast<double>(bytes);
  size_t unit = 0;
  while (x >= 1023.5 && unit + 1 < units.size()) x /= 1024, ++unit;
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.2f %s", x, units[unit]);
  return text.data();
}

}  // namespace tmamba
