#include "data/io/crc32c.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "data/io/sha256.h"

namespace tmamba {
namespace {

std::vector<uint8_t> random_bytes(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> bytes(count);
  for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// Bit by bit, from the definition.
uint32_t reference(const std::vector<uint8_t>& bytes) {
  uint32_t crc = ~0u;
  for (uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0);
  }
  return ~crc;
}

TEST(Crc32c, HasThePublishedValues) {  // RFC 3720, appendix B.4
  std::vector<uint8_t> up(32), down(32);
  for (size_t i = 0; i < 32; ++i) up[i] = static_cast<uint8_t>(i), down[i] = static_cast<uint8_t>(31 - i);
  for (auto* function : {crc32c, crc32c_detail::by_tables, crc32c_detail::by_instruction}) {
    EXPECT_EQ(function(0, "123456789", 9), 0xE3069283u);
    EXPECT_EQ(function(0, std::vector<uint8_t>(32, 0).data(), 32), 0x8A9136AAu);
    EXPECT_EQ(function(0, std::vector<uint8_t>(32, 0xFF).data(), 32), 0x62A8AB43u);
    EXPECT_EQ(function(0, up.data(), 32), 0x46DD794Eu);
    EXPECT_EQ(function(0, down.data(), 32), 0x113FDB5Cu);
    EXPECT_EQ(function(0, nullptr, 0), 0u);
  }
}

TEST(Crc32c, AllWaysAgreeAtAllLengthsAndAlignments) {
  const auto bytes = random_bytes(40000, 7);
  std::mt19937_64 random(8);
  for (int trial = 0; trial < 400; ++trial) {
    const size_t begin = random() % 64;
    const size_t count = trial < 130 ? static_cast<size_t>(trial) : random() % (bytes.size() - begin);
    const uint32_t expected = crc32c_detail::by_tables(5, bytes.data() + begin, count);
    EXPECT_EQ(crc32c_detail::by_instruction(5, bytes.data() + begin, count), expected) << begin << " " << count;
  }
  EXPECT_EQ(crc32c(0, bytes.data(), bytes.size()), reference(bytes));
}

TEST(Crc32c, PiecesJoin) {
  const auto bytes = random_bytes(30000, 9);
  std::mt19937_64 random(10);
  const uint32_t whole = crc32c(0, bytes.data(), bytes.size());
  for (int trial = 0; trial < 100; ++trial) {
    const size_t cut = random() % (bytes.size() + 1);
    const uint32_t a = crc32c(0, bytes.data(), cut);
    EXPECT_EQ(crc32c(a, bytes.data() + cut, bytes.size() - cut), whole);
  }
}

TEST(Sha256, HasThePublishedValues) {  // FIPS 180-2, appendix B
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 sha;
  for (int i = 0; i < 1000; ++i) sha.add(std::string(1000, 'a').data(), 1000);
  EXPECT_EQ(sha.hex(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

}  // namespace
}  // namespace tmamba
