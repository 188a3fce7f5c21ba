// One value of a TOML file, for the keys of a configuration or a study. For files that include the parser themselves.
#pragma once

#include <toml++/toml.h>

#include <array>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/base/enum_names.h"
#include "launch/cli/limits.h"

namespace tmamba {

// Which key, and where it stands: "train.lr", "run.toml:12".
struct Source {
  std::string key, where;
  [[noreturn]] void fail(const std::string& problem) const;  // a UserError that names both
};

// Throw UserError where the value is of another type, out of the limits or none of the choices.
void read(const Source& s, const toml::node& node, int64_t& out, const Limits& limits);
void read(const Source& s, const toml::node& node, double& out, const Limits& limits);
void read(const Source& s, const toml::node& node, bool& out, const Limits&);
void read(const Source& s, const toml::node& node, std::string& out, const Limits&);
void read(const Source& s, const toml::node& node, std::string& out, const Choices& choices);
void read(const Source& s, const toml::node& node, std::array<double, 2>& out, const Limits& limits);

// A value of an enum by its name; `values` are the valid ones.
template <class Enum>
requires std::is_enum_v<Enum>
void read(const Source& s, const toml::node& node, Enum& out, const std::vector<Enum>& values) {
  std::string name;
  Choices names;
  for (Enum value : values) names.push_back(name_of(value));
  read(s, node, name, names);
  out = value_named(values, name);
}

// What values a key of this type takes by its limits, choices or list of an enum's values; empty: all of its type.
template <class T, class Rule>
std::string valid_text(const T&, const Rule& rule) {
  if constexpr (std::is_same_v<T, bool>) {
    return "true, false";
  } else if constexpr (std::is_same_v<Rule, Choices>) {
    return joined(rule);
  } else if constexpr (!std::is_same_v<Rule, Limits>) {
    Choices names;
    for (const auto& value : rule) names.push_back(name_of(value));
    return joined(names);
  } else {
    return std::is_arithmetic_v<T> || std::is_same_v<T, std::array<double, 2>> ? rule.text() : "";
  }
}

// As a TOML string.
std::string quoted(const std::string& text);

// As a TOML value. Numbers are the shortest text that reads back: 0.8, 10.0, 3e-4.
std::string text_of(int64_t x);
std::string text_of(double x);
std::string text_of(bool x);
std::string text_of(const std::string& x);
std::string text_of(const std::array<double, 2>& x);
template <class Enum>
requires std::is_enum_v<Enum> std::string text_of(Enum x) { return quoted(name_of(x)); }

}  // namespace tmamba
