// From the name of an enum's value to the value. An enum takes part by a function name_of(value).
#pragma once

#include <array>
#include <cstddef>
#include <string>

#include "kernels/base/check.h"

namespace tmamba {

// The N values of an enum that counts from 0.
template <class Enum, size_t N>
constexpr std::array<Enum, N> enum_values() {
  std::array<Enum, N> values{};
  for (size_t i = 0; i < N; ++i) values[i] = static_cast<Enum>(i);
  return values;
}

// "a, b, c": the names of `values`.
template <class Values>
std::string names_of(const Values& values) {
  std::string names;
  for (const auto& value : values) names += str(names.empty() ? "" : ", ", name_of(value));
  return names;
}

// The one of `values` with this name. Throws UserError, which lists the valid names.
template <class Values>
typename Values::value_type value_named(const Values& values, const std::string& name) {
  for (const auto& value : values) {
    if (name == name_of(value)) return value;
  }
  throw UserError(str("unknown value \"", name, "\"; valid: ", names_of(values)));
}

}  // namespace tmamba
