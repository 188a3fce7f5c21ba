// An amount of training: a number in the unit that the run's length is given in, or of steps, tokens or per cent of the
// run, as text: 100, "500 steps", "2e9 tokens", "1%".
#pragma once

#include <cstdint>
#include <string>

namespace tmamba {

enum class AmountUnit : uint8_t {
  of_run,  // steps if train.steps is given, tokens if train.tokens is
  steps,
  tokens,
  percent,  // of the run's length
};

struct Amount {
  double value = 0;
  AmountUnit unit = AmountUnit::of_run;
};

// "500 steps", "2e9 tokens" or "1%". Throws UserError that says what is valid.
Amount parse_amount(const std::string& text);
// The shortest text that reads back, without quotes.
std::string to_string(const Amount& amount);

}  // namespace tmamba
