// CRC32C (Castagnoli, reflected polynomial 0x82F63B78), the checksum of every tensor slice on disk.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace tmamba {

// Extends `crc`, the checksum of the data so far (0 for none), by `bytes` bytes. Uses the CPU's CRC instruction if
// there is one (tens of GB/s), else tables; both give the same value.
uint32_t crc32c(uint32_t crc, const void* data, size_t bytes);

namespace crc32c_detail {

// Slicing-by-8: eight table look-ups per eight bytes.
uint32_t by_tables(uint32_t crc, const void* data, size_t bytes);
// Uses the CPU's instruction; requires has_instruction().
uint32_t by_instruction(uint32_t crc, const void* data, size_t bytes);
bool has_instruction();

inline constexpr uint32_t kPolynomial = 0x82F63B78u;

// Product of two polynomials over GF(2) modulo the CRC polynomial; the highest bit is the coefficient of x^0.
constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = (b >> 1) ^ ((b & 1) ? kPolynomial : 0);
  }
  return product;
}

// x^(8 n). Appending n zero bytes multiplies the CRC register by it.
constexpr uint32_t zero_bytes_factor(uint64_t n) {
  uint32_t factor = 0x80000000u;       // 1
  uint32_t square = 0x80000000u >> 8;  // x^8
  for (; n != 0; n >>= 1) {
    if (n & 1) factor = multiply(factor, square);
    square = multiply(square, square);
  }
  return factor;
}

}  // namespace crc32c_detail
}  // namespace tmamba
