#include "launch/config/toml_value.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "kernels/base/check.h"

namespace tmamba {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n' || c == '\t') {
      out += c == '\n' ? "\\n" : "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      char code[7];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
      out += code;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

void Source::fail(const std::string& problem) const { throw UserError(str(where, ": ", key, " ", problem)); }

namespace {

void check(const Source& source, double value, const Limits& limits) {
  if (value >= limits.min && value <= limits.max) return;
  source.fail(
      str("= ", value, " is out of range: it must be ",
          std::isinf(limits.max) ? str("at least ", limits.min) : str("between ", limits.min, " and ", limits.max)));
}

}  // namespace

void read(const Source& s, const toml::node& node, int64_t& out, const Limits& limits) {
  if (!node.is_integer()) s.fail("must be an integer");
  out = node.as_integer()->get();
  check(s, static_cast<double>(out), limits);
}
void read(const Source& s, const toml::node& node, double& out, const Limits& limits) {
  if (!node.is_number()) s.fail("must be a number");
  out = *node.value<double>();
  check(s, out, limits);
}
void read(const Source& s, const toml::node& node, bool& out, const Limits&) {
  if (!node.is_boolean()) s.fail("must be true or false");
  out = node.as_boolean()->get();
}
void read(const Source& s, const toml::node& node, std::string& out, const Limits&) {
  if (!node.is_string()) s.fail("must be a string");
  out = node.as_string()->get();
}
void read(const Source& s, const toml::node& node, std::string& out, const Choices& choices) {
  read(s, node, out, Limits{});
  if (std::find(choices.begin(), choices.end(), out) != choices.end()) return;
  std::string list;
  for (const std::string& choice : choices) list += (list.empty() ? "" : ", ") + quoted(choice);
  s.fail(str("= ", quoted(out), " must be one of ", list));
}

}  // namespace tmamba
