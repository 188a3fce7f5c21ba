// The checksums inside HDF5 files. The fuzzers link tests/fuzz/no_checksums.cpp instead of this file, because a mutated
// input would almost never pass a checksum.
#include <algorithm>
#include <bit>

#include "data/hdf5/h5_bytes.h"

namespace tmamba::h5_detail {

namespace {

uint32_t word(const uint8_t* data, size_t bytes) {
  uint32_t x = 0;
  for (size_t i = 0; i < std::min<size_t>(bytes, 4); ++i) x |= static_cast<uint32_t>(data[i]) << (8 * i);
  return x;
}

}  // namespace

// Jenkins' lookup3, used for metadata structures.
static uint32_t lookup3(const uint8_t* data, size_t bytes) {
  const auto rot = [](uint32_t x, int k) { return std::rotl(x, k); };
  uint32_t a = 0xdeadbeef + static_cast<uint32_t>(bytes), b = a, c = a;
  for (; bytes > 12; data += 12, bytes -= 12) {
    a += word(data, 4), b += word(data + 4, 4), c += word(data + 8, 4);
    a -= c, a ^= rot(c, 4), c += b;
    b -= a, b ^= rot(a, 6), a += c;
    c -= b, c ^= rot(b, 8), b += a;
    a -= c, a ^= rot(c, 16), c += b;
    b -= a, b ^= rot(a, 19), a += c;
    c -= b, c ^= rot(b, 4), b += a;
  }
  if (bytes == 0) return c;
  a += word(data, bytes);
  if (bytes > 4) b += word(data + 4, bytes - 4);
  if (bytes > 8) c += word(data + 8, bytes - 8);
  c ^= b, c -= rot(b, 14), a ^= c, a -= rot(c, 11), b ^= a, b -= rot(a, 25);
  c ^= b, c -= rot(b, 16), a ^= c, a -= rot(c, 4), b ^= a, b -= rot(a, 14), c ^= b, c -= rot(b, 24);
  return c;
}

// HDF5's variant of Fletcher-32 (big-endian 16-bit words), used for chunks.
static uint32_t fletcher32(const uint8_t* data, size_t bytes) {
  uint32_t sum1 = 0, sum2 = 0;
  size_t words = bytes / 2;
  while (words > 0) {
    size_t block = std::min<size_t>(words, 360);  // the most words whose sums cannot overflow 32 bits
    words -= block;
    for (; block > 0; --block, data += 2) {
      sum1 += static_cast<uint32_t>(data[0] << 8 | data[1]);
      sum2 += sum1;
    }
    sum1 = (sum1 & 0xFFFF) + (sum1 >> 16);
    sum2 = (sum2 & 0xFFFF) + (sum2 >> 16);
  }
  if (bytes % 2 != 0) {
    sum1 += static_cast<uint32_t>(*data << 8);
    sum2 += sum1;
    sum1 = (sum1 & 0xFFFF) + (sum1 >> 16);
    sum2 = (sum2 & 0xFFFF) + (sum2 >> 16);
  }
  sum1 = (sum1 & 0xFFFF) + (sum1 >> 16);
  sum2 = (sum2 & 0xFFFF) + (sum2 >> 16);
  return sum2 << 16 | sum1;
}

bool lookup3_holds(const uint8_t* data, size_t bytes, uint32_t expected) { return lookup3(data, bytes) == expected; }

bool fletcher32_holds(const uint8_t* data, size_t bytes, uint32_t expected) {
  return fletcher32(data, bytes) == expected;
}

}  // namespace tmamba::h5_detail
