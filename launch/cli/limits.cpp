#include "launch/cli/limits.h"

#include <charconv>
#include <cmath>

#include "kernels/base/check.h"

namespace tmamba {

std::string Limits::text() const {
  return std::isinf(max) ? str("at least ", plain_number(min))
                         : str("between ", plain_number(min), " and ", plain_number(max));
}

std::string joined(const Choices& choices) {
  std::string list;
  for (const std::string& choice : choices) list += (list.empty() ? "" : ", ") + choice;
  return list;
}

std::string with_valid(const std::string& meaning, const std::string& valid) {
  return valid.empty() ? meaning : str(meaning, " (", valid, ")");
}

std::string number_text(double x) {
  // Numbers of a common size are written without an exponent.
  const bool plain = !std::isfinite(x) || x == 0 || (std::abs(x) >= 1e-3 && std::abs(x) < 1e7);
  char digits[32];
  const auto format = plain ? std::chars_format::fixed : std::chars_format::scientific;
  const auto written = std::to_chars(digits, digits + sizeof digits, x, format);
  std::string text(digits, written.ptr);
  if (const size_t e = text.find('e'); !plain) {  // "3e-04" and "1e+18" become "3e-4" and "1e18"
    const size_t number = text.find_first_not_of("+-0", e + 1);
    text = text.substr(0, e + 1) + (text[e + 1] == '-' ? "-" : "") + text.substr(number);
  }
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

std::string plain_number(double x) {
  const std::string text = number_text(x);
  return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

}  // namespace tmamba
