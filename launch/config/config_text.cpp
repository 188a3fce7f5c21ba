#include "launch/config/config_text.h"

#include <string_view>

#include "data/io/fs.h"

namespace tmamba {

namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 20;
constexpr int kMaxDots = 16;  // of one key

enum class Place { plain, comment, basic, literal, long_basic, long_literal };

// Scans a TOML text, tracking only where strings and comments begin and end. If the text is malformed in that respect,
// the parser stops at the same place, so the rest does not matter.
class Scanner {
 public:
  Scanner(const std::string& text, const std::string& name) : text_(text), name_(name) {}

  void run() {
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '\n') ++line_, line_begin_ = at_ + 1;
      step(c);
    }
  }

 private:
  void step(char c) {
    switch (place_) {
      case Place::plain:
        return plain(c);
      case Place::comment:
        if (c == '\n') place_ = Place::plain;
        return;
      case Place::basic:
      case Place::literal:
        if (c == '\n' || c == (place_ == Place::basic ? '"' : '\'')) place_ = Place::plain;
        break;
      case Place::long_basic:
      case Place::long_literal:
        if (at(place_ == Place::long_basic ? "\"\"\"" : "'''")) {
          at_ += 2;
          // Up to two more quotes belong to the string.
          while (at_ + 1 < text_.size() && text_[at_ + 1] == c) ++at_;
          place_ = Place::plain;
        }
        break;
    }
    const bool escapes = place_ == Place::basic || place_ == Place::long_basic;
    if (escapes && c == '\\') escape();
  }

  // At a backslash: skips the character that it escapes.
  void escape() {
    // In a long string the parser skips white space after the backslash and mishandles a non-ASCII character there.
    const size_t next = text_.find_first_not_of(" \t\n\v\f\r", at_ + 1);
    if (place_ == Place::long_basic && next != std::string::npos && static_cast<unsigned char>(text_[next]) >= 0x80) {
      fail("non-ASCII character after a backslash; write it as \\u and four digits");
    }
    if (at_ + 1 < text_.size() && text_[at_ + 1] != '\n') ++at_;
  }

  void plain(char c) {
    if (static_cast<unsigned char>(c) >= 0x80) {
      fail("non-ASCII character outside of quotes; put its text in quotes");
    }
    if (c == '#') place_ = Place::comment;
    // Elsewhere the parser would take it for a letter, or stop.
    const bool may_begin = std::string_view("\n=,[{").find(last_) != std::string_view::npos;
    if ((c == '[' || c == '{') && !may_begin) fail("bracket in the middle of a word");
    if (c == '"' || c == '\'') {
      if (!may_begin) fail("quote in the middle of a word");
      const bool basic = c == '"', is_long = at(basic ? "\"\"\"" : "\'\'\'");
      if (is_long) at_ += 2;
      place_ = basic ? (is_long ? Place::long_basic : Place::basic) : (is_long ? Place::long_literal : Place::literal);
    }
    if (c == '=') {
      if (in_value_) fail("second equals sign in a value");
      in_value_ = true;
    }
    if (c == '\n' || c == '#' || c == ',' || c == '{' || c == '}') in_value_ = false;
    if (c != ' ' && c != '\t' && c != '\r') last_ = c == '#' ? '\n' : c;
    if (c == '\n' || c == '=' || c == ',' || c == '{' || c == '}' || c == '[' || c == ']') dots_ = 0;
    if (c == '.' && ++dots_ > kMaxDots) fail("key of too many parts; keys are SECTION.NAME");
  }

  bool at(const char* quotes) const { return text_.compare(at_, 3, quotes) == 0; }
  [[noreturn]] void fail(const char* problem) const {
    throw UserError(str(name_, ":", line_, ":", at_ - line_begin_ + 1, ": ", problem));
  }

  const std::string& text_;
  const std::string& name_;
  size_t at_ = 0, line_begin_ = 0;
  int line_ = 1, dots_ = 0;
  bool in_value_ = false;
  char last_ = '\n';  // last character outside of strings and comments that is not a space
  Place place_ = Place::plain;
};

}  // namespace

std::string read_config_text(const std::filesystem::path& file) {
  std::error_code error;
  const auto plain = std::filesystem::canonical(file, error);
  if (error || !std::filesystem::is_regular_file(plain)) {
    throw UserError(str(file.string(), ": cannot read this configuration file: no such regular file"));
  }
  try {
    return read_text(plain, kMaxBytes);
  } catch (const Error& failure) {
    throw UserError(str(file.string(), ": cannot read this configuration file: ", failure.what()));
  }
}

void check_config_text(const std::string& text, const std::string& name) {
  const size_t begin = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;  // a byte order mark
  Scanner(begin == 0 ? text : text.substr(begin), name).run();
}

}  // namespace tmamba
