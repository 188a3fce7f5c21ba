// UTF-8 as the Unicode standard defines it: no overlong forms, no surrogates, no code points above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace tmamba {

// Bytes of the character that begins at text[at]; 0 if it is invalid.
inline size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return at + i < text.size() ? static_cast<uint8_t>(text[at + i]) : uint8_t{0}; };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t lead = byte(0), second = byte(1);
  if (at >= text.size()) return 0;
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return continues(1) ? 2 : 0;
  if (lead < 0xF0) {
    const bool allowed = (lead != 0xE0 || second >= 0xA0) && (lead != 0xED || second < 0xA0);
    return allowed && continues(1) && continues(2) ? 3 : 0;
  }
  if (lead > 0xF4) return 0;
  const bool allowed = (lead != 0xF0 || second >= 0x90) && (lead != 0xF4 || second < 0x90);
  return allowed && continues(1) && continues(2) && continues(3) ? 4 : 0;
}

// Largest end <= limit such that text[0, end) does not end inside a character. Only lead bytes are examined.
inline size_t utf8_cut(std::string_view text, size_t limit) {
  if (limit >= text.size()) return text.size();
  size_t end = limit;
  while (end > 0 && limit - end < 3 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) --end;
  return end == 0 || (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80 ? limit : end;
}

}  // namespace tmamba
