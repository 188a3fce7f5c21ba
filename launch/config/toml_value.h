// One value of a TOML file, for the keys of a configuration or a study. For files that include the parser themselves.
#pragma once

#include <toml++/toml.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace tmamba {

struct Limits {
  double min = 0, max = std::numeric_limits<double>::infinity();
};
using Choices = std::vector<std::string>;

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

// As a TOML string.
std::string quoted(const std::string& text);

}  // namespace tmamba
