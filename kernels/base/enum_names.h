// From the name of an enum's value to the value. An enum takes part by a function name_of(value).
#pragma once

#include <string>

#include "kernels/base/check.h"

namespace tmamba {

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
