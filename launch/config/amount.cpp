#include "launch/config/amount.h"

#include <charconv>
#include <cmath>

#include "kernels/base/check.h"
#include "launch/config/toml_value.h"

namespace tmamba {

Amount parse_amount(const std::string& text) {
  Amount amount;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, amount.value);
  std::string unit(rest, end);
  if (unit.starts_with(' ')) unit.erase(0, 1);
  if (unit == "step" || unit == "steps") amount.unit = AmountUnit::steps;
  if (unit == "tokens") amount.unit = AmountUnit::tokens;
  if (unit == "%") amount.unit = AmountUnit::percent;
  const bool valid = error == std::errc() && std::isfinite(amount.value) && amount.value >= 0;
  if (valid && amount.unit != AmountUnit::of_run) return amount;
  throw UserError(
      "must be a number that is not negative, or such a number with a unit: \"500 steps\", \"2e9 tokens\", "
      "\"1%\"");
}

std::string to_string(const Amount& amount) {
  std::string number = text_of(amount.value);
  if (number.ends_with(".0")) number.resize(number.size() - 2);
  switch (amount.unit) {
    case AmountUnit::of_run:
      return number;
    case AmountUnit::steps:
      return number + " steps";
    case AmountUnit::tokens:
      return number + " tokens";
    case AmountUnit::percent:
      return number + "%";
  }
  return number;
}

}  // namespace tmamba
