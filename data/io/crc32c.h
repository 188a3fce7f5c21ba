// CRC32C (Castagnoli, reflected polynomial 0x82F63B78), the checksum of every tensor slice on disk.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace tmamba {

// The checksum of `bytes` bytes appended to data whose checksum is `crc`; start with 0.
// Takes the CPU's instruction where there is one (tens of GB/s), tables otherwise. Same value on every machine.
uint32_t crc32c(uint32_t crc, const void* data, size_t bytes);

namespace crc32c_detail {

// The same by eight table look-ups for eight bytes.
uint32_t by_tables(uint32_t crc, const void* data, size_t bytes);
// The same by the CPU's instruction; only where has_instruction().
uint32_t by_instruction(uint32_t crc, const void* data, size_t bytes);
bool has_instruction();

inline constexpr uint32_t kPolynomial = 0x82F63B78u;

// Product of two polynomials over GF(2) modulo the CRC's; the coefficient of x^0 is the highest bit.
constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = (b >> 1) ^ ((b & 1) ? kPolynomial : 0);
  }
  return product;
}

// x^(8 n): multiplying a CRC register by it is what n zero bytes do to the register.
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
