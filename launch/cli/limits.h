// What values an option or a configuration key takes, and how that is said.
#pragma once

#include <limits>
#include <string>
#include <vector>

namespace tmamba {

struct Limits {
  double min = 0, max = std::numeric_limits<double>::infinity();

  bool contain(double x) const { return x >= min && x <= max; }  // false for NaN
  std::string text() const;                                      // "at least 1", "between 0 and 100"
};
// The words that are valid.
using Choices = std::vector<std::string>;
std::string joined(const Choices& choices);  // "cpu, cuda"

// The meaning of an option or key, with what is valid in parentheses if that is not empty.
std::string with_valid(const std::string& meaning, const std::string& valid);

// The shortest text that reads back as the number: "0.8", "10.0", "3e-4".
std::string number_text(double x);
// The same without ".0" of whole numbers, for messages.
std::string plain_number(double x);

}  // namespace tmamba
