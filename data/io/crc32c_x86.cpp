// CRC32C with the SSE4.2 instruction. The instruction has a latency of three cycles and a throughput of one, so three
// adjacent blocks are processed at once. Their registers are combined with a table of the linear map that a block of
// zero bytes applies to the register.
#include <cstring>

#include "data/io/crc32c.h"

namespace tmamba::crc32c_detail {

namespace {

constexpr size_t kBlock = 4096;  // bytes per lane; combining two costs about as much as 60 bytes

using JoinTable = std::array<std::array<uint32_t, 256>, 4>;

constexpr JoinTable make_join_table() {
  JoinTable table{};
  const uint32_t factor = zero_bytes_factor(kBlock);
  for (uint32_t byte = 0; byte < 4; ++byte) {
    for (uint32_t b = 0; b < 256; ++b) table[byte][b] = multiply(b << (8 * byte), factor);
  }
  return table;
}

constexpr JoinTable kJoin = make_join_table();

uint32_t after_zero_block(uint32_t crc) {
  return kJoin[0][crc & 0xFF] ^ kJoin[1][(crc >> 8) & 0xFF] ^ kJoin[2][(crc >> 16) & 0xFF] ^ kJoin[3][crc >> 24];
}

uint64_t word_at(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

}  // namespace

bool has_instruction() { return __builtin_cpu_supports("sse4.2") != 0; }

__attribute__((target("sse4.2"))) uint32_t by_instruction(uint32_t crc, const void* data, size_t bytes) {
  const auto* p = static_cast<const uint8_t*>(data);
  uint64_t a = ~crc;
  for (; bytes >= 3 * kBlock; bytes -= 3 * kBlock, p += 3 * kBlock) {
    uint64_t b = 0, c = 0;
    for (size_t i = 0; i < kBlock; i += 8) {
      a = __builtin_ia32_crc32di(a, word_at(p + i));
      b = __builtin_ia32_crc32di(b, word_at(p + kBlock + i));
      c = __builtin_ia32_crc32di(c, word_at(p + 2 * kBlock + i));
    }
    const uint32_t ab = after_zero_block(static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b);
    a = after_zero_block(ab) ^ static_cast<uint32_t>(c);
  }
  for (; bytes >= 8; bytes -= 8, p += 8) a = __builtin_ia32_crc32di(a, word_at(p));
  uint32_t tail = static_cast<uint32_t>(a);
  for (; bytes > 0; --bytes, ++p) tail = __builtin_ia32_crc32qi(tail, *p);
  return ~tail;
}

}  // namespace tmamba::crc32c_detail
