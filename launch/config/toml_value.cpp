#include "launch/config/toml_value.h"

#include <algorithm>
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
  if (limits.contain(value)) return;
  source.fail(str("= ", plain_number(value), " is out of range: it must be ", limits.text()));
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
void read(const Source& s, const toml::node& node, std::array<double, 2>& out, const Limits& limits) {
  const toml::array* array = node.as_array();
  if (!array || array->size() != 2) s.fail("must be a list of two numbers, for example [0.9, 0.95]");
  for (size_t i = 0; i < 2; ++i) read(s, (*array)[i], out[i], limits);
}

std::string text_of(int64_t x) { return std::to_string(x); }
std::string text_of(bool x) { return x ? "true" : "false"; }
std::string text_of(const std::string& x) { return quoted(x); }
std::string text_of(const std::array<double, 2>& x) { return "[" + text_of(x[0]) + ", " + text_of(x[1]) + "]"; }
std::string text_of(double x) { return number_text(x); }

}  // namespace tmamba
