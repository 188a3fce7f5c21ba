// Token files of random tokens, for tests.
#pragma once

#include <gtest/gtest.h>
#include <hdf5.h>

#include <array>
#include <numeric>
#include <random>

#include "data/hdf5/h5.h"
#include "data/tokens/token_file.h"
#include "data/tokens/tokenizer.h"
#include "tests/data/text.h"

namespace tmamba {

inline TokenFileInfo info_with(int64_t vocab_size) {
  TokenFileInfo info;
  info.vocab_size = vocab_size;
  info.document_end = vocab_size - 1;
  info.tokenizer_kind = "test";
  info.tokenizer_hash = "abc";
  info.tokenizer_file = "tokenizer.model";
  info.split = "train";
  return info;
}

inline std::vector<int32_t> random_tokens(size_t count, int64_t vocab_size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(count);
  for (auto& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size - 1));
  return tokens;
}

// Writes `tokens` as documents of 1000 and returns what the file must hold.
inline std::vector<int32_t> write_tokens(const std::filesystem::path& path, const std::vector<int32_t>& tokens,
                                         int64_t vocab_size) {
  TokenFileWriter writer(path, info_with(vocab_size), std::vector<uint16_t>(static_cast<size_t>(vocab_size), 3));
  std::vector<int32_t> expected;
  for (size_t at = 0; at < tokens.size(); at += 1000) {
    const auto document = std::span(tokens).subspan(at, std::min<size_t>(1000, tokens.size() - at));
    writer.append(document.first(document.size() / 2));
    writer.append(document.subspan(document.size() / 2));
    writer.end_document();
    expected.insert(expected.end(), document.begin(), document.end());
    expected.push_back(static_cast<int32_t>(vocab_size - 1));
  }
  EXPECT_EQ(writer.tokens(), static_cast<int64_t>(expected.size()));
  writer.close(12345, "feed");
  return expected;
}

}  // namespace tmamba
