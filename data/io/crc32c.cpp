#include "data/io/crc32c.h"

#include <bit>
#include <cstring>

namespace tmamba {

namespace crc32c_detail {

namespace {

// tables[k][b]: the register after byte b and then k zero bytes.
constexpr std::array<std::array<uint32_t, 256>, 8> make_tables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    tables[0][b] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t b = 0; b < 256; ++b) {
      const uint32_t crc = tables[k - 1][b];
      tables[k][b] = (crc >> 8) ^ tables[0][crc & 0xFF];
    }
  }
  return tables;
}

constexpr auto kTables = make_tables();
static_assert(std::endian::native == std::endian::little, "checkpoints and this code are little-endian");

}  // namespace

uint32_t by_tables(uint32_t crc, const void* data, size_t bytes) {
  const auto* p = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; bytes >= 8; bytes -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    word ^= crc;
    crc = 0;
    for (size_t i = 0; i < 8; ++i) crc ^= kTables[7 - i][(word >> (8 * i)) & 0xFF];
  }
  for (; bytes > 0; --bytes, ++p) crc = (crc >> 8) ^ kTables[0][(crc ^ *p) & 0xFF];
  return ~crc;
}

}  // namespace crc32c_detail

uint32_t crc32c(uint32_t crc, const void* data, size_t bytes) {
  static const auto implementation =
      crc32c_detail::has_instruction() ? crc32c_detail::by_instruction : crc32c_detail::by_tables;
  return implementation(crc, data, bytes);
}

}  // namespace tmamba
