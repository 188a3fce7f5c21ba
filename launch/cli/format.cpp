#include "launch/cli/format.h"

#include <array>
#include <cstdio>

#include "kernels/base/check.h"

namespace tmamba {

namespace {

std::string formatted(const char* format, auto... values) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, values...);
  return text.data();
}

}  // namespace

std::string fixed(double x, int digits) { return formatted("%.*f", digits, x); }

std::string scientific(double x, int digits) { return formatted("%.*e", digits, x); }

std::string count_text(double x) {
  constexpr std::array<const char*, 5> units{"", "k", "M", "G", "T"};
  size_t unit = 0;
  while (x >= 999.5 && unit + 1 < units.size()) x /= 1000, ++unit;
  return formatted(unit == 0 ? "%.0f%s" : x < 10 ? "%.2f%s" : "%.1f%s", x, units[unit]);
}

std::string duration(double seconds) {
  const auto total = static_cast<long long>(seconds < 0 ? 0 : seconds + 0.5);
  if (total >= 3600) return formatted("%lld:%02lld:%02lld", total / 3600, total / 60 % 60, total % 60);
  return formatted("%lld:%02lld", total / 60, total % 60);
}

std::string ranges_text(const std::vector<int>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    text += str(text.empty() ? "" : ",", numbers[i]);
    if (end > i + 1) text += str("-", numbers[end - 1]);
    i = end;
  }
  return text;
}

std::string ranks_text(const std::vector<int>& ranks) {
  return (ranks.size() == 1 ? "rank " : "ranks ") + ranges_text(ranks);
}

std::string indent(const std::string& text) {
  std::string out = "    ";
  for (char c : text) {
    if (c == '\n') {
      out += "\n    ";
    } else {
      out += static_cast<unsigned char>(c) < 32 || c == 127 ? ' ' : c;
    }
  }
  return out;
}

void message_line(const std::string& text) {
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}

}  // namespace tmamba
