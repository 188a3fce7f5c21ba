// Text for tests: real (the licence), random Unicode, random bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <random>
#include <string>

#include "tests/data/temp_folder.h"
#include "tests/source_dir.h"

namespace tmamba::testing_files {

inline std::string licence() { return read_file(std::filesystem::path(TMAMBA_SOURCE_DIR) / "LICENSE"); }

inline std::string random_bytes(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text(count, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

inline void append_utf8(std::string& text, uint32_t code) {
  const auto add = [&](uint32_t byte) { text += static_cast<char>(byte); };
  if (code < 0x80) return add(code);
  if (code < 0x800) return add(0xC0 | code >> 6), add(0x80 | (code & 63));
  if (code < 0x10000) return add(0xE0 | code >> 12), add(0x80 | (code >> 6 & 63)), add(0x80 | (code & 63));
  add(0xF0 | code >> 18), add(0x80 | (code >> 12 & 63)), add(0x80 | (code >> 6 & 63)), add(0x80 | (code & 63));
}

// Characters of all lengths, with many spaces, tabs, newlines and SentencePiece's own space symbol among them.
inline std::string random_unicode(size_t characters, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text;
  for (size_t i = 0; i < characters; ++i) {
    switch (random() % 10) {
      case 0:
        text += ' ';
        break;
      case 1:
        text += std::string(random() % 5, ' ') + "\t\n\r"[random() % 3];
        break;
      case 2:
        append_utf8(text, random() % 4 == 0 ? 0x2581 : static_cast<uint32_t>(0x2580 + random() % 10));
        break;
      case 3:
        append_utf8(text, static_cast<uint32_t>(0x300 + random() % 0x500));
        break;
      case 4:
        append_utf8(text, static_cast<uint32_t>(0x1F300 + random() % 0x300));
        break;
      case 5: {
        const auto code = static_cast<uint32_t>(random() % 0x110000);
        append_utf8(text, code >= 0xD800 && code < 0xE000 ? 0xFFFD : code);
        break;
      }
      default:
        text += static_cast<char>('a' + random() % 26);
    }
  }
  return text;
}

}  // namespace tmamba::testing_files
