#include "data/tokens/json_line.h"

#include <optional>

#include "data/tokens/utf8.h"
#include "kernels/base/check.h"

namespace tmamba {

namespace {

// Checks the syntax of JSON values and steps over them. Nesting needs no recursion, so that no line overflows the
// stack.
class JsonScanner {
 public:
  explicit JsonScanner(std::string_view line) : line_(line) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(str("is not JSON: ", what, " at column ", at_ + 1));
  }
  char peek() const { return at_ < line_.size() ? line_[at_] : '\0'; }
  void space() { at_ = std::min(line_.find_first_not_of(" \t\r\n", at_), line_.size()); }
  bool take(char c) {
    space();
    if (peek() != c || at_ == line_.size()) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(str("expected '", c, "'"));
  }
  void end() {
    space();
    if (at_ < line_.size()) fail("text after the value");
  }

  // Steps over a string and returns what is between its quotes.
  std::string_view string() {
    expect('"');
    const size_t begin = at_;
    for (;; ++at_) {
      const char c = peek();
      if (at_ == line_.size()) fail("a string that does not end");
      if (c == '"') return line_.substr(begin, at_++ - begin);
      if (static_cast<uint8_t>(c) < 0x20) fail("a control character in a string");
      if (c == '\\') escape();
    }
  }

  // Steps over any value.
  void value() {
    std::string open;  // brackets that are open, innermost last
    do {
      space();
      if (peek() == '{' || peek() == '[') {
        open += line_[at_++];
        if (!take(closing(open.back()))) {
          if (open.back() == '{') key();
          continue;
        }
        open.pop_back();
      } else {
        scalar();
      }
      while (!open.empty() && !take(',')) {
        expect(closing(open.back()));
        open.pop_back();
      }
      if (!open.empty() && open.back() == '{') key();
    } while (!open.empty());
  }

 private:
  static char closing(char open) { return open == '{' ? '}' : ']'; }
  void key() {
    string();
    expect(':');
  }
  void escape() {
    ++at_;
    if (peek() == 'u') {
      for (int digit = 0; digit < 4; ++digit) {
        ++at_;
        if (!std::isxdigit(static_cast<unsigned char>(peek()))) fail("expected four hexadecimal digits after \\u");
      }
    } else if (std::string_view("\"\\/bfnrt").find(peek()) == std::string_view::npos) {
      fail("an unknown escape sequence");
    }
  }
  size_t digits() {
    const size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ - begin;
  }
  bool literal(std::string_view word) {
    if (!line_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }
  void scalar() {
    if (peek() == '"') {
      string();
      return;
    }
    for (const char* word : {"true", "false", "null", "NaN", "Infinity", "-Infinity"}) {
      if (literal(word)) return;
    }
    literal("-");
    const bool zero = peek() == '0';
    const size_t whole = digits();
    if (whole == 0 || (zero && whole > 1)) fail("expected a value");
    if (literal(".") && digits() == 0) fail("expected a digit");
    if (literal("e") || literal("E")) {
      if (!literal("+")) literal("-");
      if (digits() == 0) fail("expected a digit");
    }
  }

  std::string_view line_;
  size_t at_ = 0;
};

void append_utf8(std::string& out, uint32_t code) {
  const auto add = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) return add(code);
  if (code < 0x800) return add(0xC0 | code >> 6), add(0x80 | (code & 63));
  if (code < 0x10000) return add(0xE0 | code >> 12), add(0x80 | (code >> 6 & 63)), add(0x80 | (code & 63));
  add(0xF0 | code >> 18), add(0x80 | (code >> 12 & 63)), add(0x80 | (code >> 6 & 63)), add(0x80 | (code & 63));
}

bool is_surrogate(uint32_t code, uint32_t first) { return code >= first && code < first + 0x400; }

// Decodes the escape sequence text[at, ...) of a checked string and returns its end.
size_t unescape(std::string_view text, size_t at, std::string& out) {
  constexpr std::string_view kNames = "bfnrt", kCharacters = "\b\f\n\r\t";
  const auto hex = [&](size_t from) {
    return static_cast<uint32_t>(std::stoul(std::string(text.substr(from, 4)), nullptr, 16));
  };
  const char c = text[at + 1];
  if (c != 'u') {
    const size_t name = kNames.find(c);
    out += name == std::string_view::npos ? c : kCharacters[name];
    return at + 2;
  }
  uint32_t code = hex(at + 2);
  size_t end = at + 6;
  if (is_surrogate(code, 0xD800) && text.substr(end).starts_with("\\u") && is_surrogate(hex(end + 2), 0xDC00)) {
    code = 0x10000 + ((code - 0xD800) << 10) + (hex(end + 2) - 0xDC00);
    end += 6;
  } else if (is_surrogate(code, 0xD800) || is_surrogate(code, 0xDC00)) {
    throw UserError(str("has the lone surrogate ", text.substr(at, 6), " in its text, which is not a character"));
  }
  append_utf8(out, code);
  return end;
}

// The characters of a checked string: `text` itself if it has no escape sequence.
std::string_view decode(std::string_view text, std::string& buffer) {
  buffer.clear();
  size_t copied = 0;
  for (size_t at = 0; at < text.size();) {
    if (text[at] == '\\') {
      buffer += text.substr(copied, at - copied);
      at = copied = unescape(text, at, buffer);
      continue;
    }
    const size_t length = utf8_length(text, at);
    if (length == 0) throw UserError(str("is not JSON: byte ", at, " of its text is not UTF-8"));
    at += length;
  }
  if (copied == 0) return text;
  return buffer += text.substr(copied);
}
}  // namespace

std::string_view json_line_text(std::string_view line, std::string_view field, std::string& buffer) {
  JsonScanner scanner(line);
  scanner.space();
  if (scanner.peek() != '{') {
    scanner.value();
    scanner.end();
    throw UserError("is not a JSON object");
  }
  std::optional<std::string_view> found;
  bool seen = false;
  scanner.expect('{');
  bool more = !scanner.take('}');
  while (more) {
    std::string_view name = scanner.string();
    // A name with escape sequences that are not Unicode is not the field's.
    if (name.find('\\') != std::string_view::npos) {
      try {
        name = decode(name, buffer);
      } catch (const UserError&) {
      }
    }
    const bool wanted = name == field;
    scanner.expect(':');
    scanner.space();
    if (wanted && seen) throw UserError(str("has the field \"", field, "\" twice"));
    seen = seen || wanted;
    if (wanted && scanner.peek() == '"') {
      found = scanner.string();
    } else {
      scanner.value();
    }
    more = scanner.take(',');
    if (!more) scanner.expect('}');
  }
  scanner.end();
  if (!seen) throw UserError(str("has no field \"", field, "\"; `--field NAME` reads another one"));
  if (!found) throw UserError(str("field \"", field, "\" is not a string"));
  return decode(*found, buffer);
}

}  // namespace tmamba
