#include <algorithm>
#include <vector>

#include "data/tokens/token_file.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace {

constexpr int64_t kPiece = 1 << 16;

void file(const std::filesystem::path& path) {
  const TokenFile tokens(path, 0);
  std::vector<int32_t> piece(kPiece);
  // Compression lets a small file declare a thousand times its size: read only part of it.
  const int64_t end = std::min(tokens.info().tokens, 4 * kPiece);
  for (int64_t begin = 0; begin < end; begin += kPiece) {
    const auto out = std::span(piece).first(static_cast<size_t>(std::min(kPiece, end - begin)));
    tokens.read(begin, out);
    for (int32_t token : out) require(token >= 0 && token < tokens.info().vocab_size, "a token out of the vocabulary");
  }
  require(std::ssize(tokens.token_bytes()) == tokens.info().vocab_size, "a vocabulary of another size");
  tokens.documents();
}

void bytes(const std::string& input) { file(scratch_file("fuzz.h5", input)); }

}  // namespace

const Target token_file{"token_file", bytes, file};

}  // namespace tmamba::fuzz
