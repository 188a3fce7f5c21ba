// Token files: HDF5 with `/tokens` (1-D, uint16 or uint32, chunked), `/documents` (int64 start offsets), `/token_bytes`
// (uint16, bytes of text per token id) and attributes naming the tokenizer, its vocabulary and the source text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace tmamba {

struct TokenFileInfo {
  std::filesystem::path path;
  int64_t tokens = 0;
  int64_t documents = 0;
  int64_t vocab_size = 0;
  int64_t source_bytes = 0;        // bytes of text in this file
  int64_t document_end = 0;        // the token after every document
  std::string tokenizer_kind;
  std::string tokenizer_hash;
  std::string tokenizer_file;      // file beside the token file, or "bytes"
  std::string source_hash;         // SHA-256 of the text, hexadecimal
  std::string split;               // "train" or "valid"
  int64_t version = 1;
};

// A token file open for reading. Foreign bytes: everything is checked when it is opened, and errors are UserErrors that
// name the file and what is wrong with it (missing, empty, not HDF5, truncated, another version, links or filters that
// are not allowed, a token out of the vocabulary when read).
class TokenFile {
 public:
  explicit TokenFile(const std::filesystem::path& path);
  ~TokenFile();
  TokenFile(TokenFile&&) noexcept;
  TokenFile(const TokenFile&) = delete;

  const TokenFileInfo& info() const { return info_; }
  // Tokens [begin, begin + out.size()).
  void read(int64_t begin, std::span<int32_t> out) const;
  // Bytes of text that each token id stands for, [vocab_size].
  const std::vector<uint16_t>& token_bytes() const { return token_bytes_; }
  // Start offset of every document.
  std::vector<int64_t> documents() const;

 private:
  struct File;
  TokenFileInfo info_;
  std::vector<uint16_t> token_bytes_;
  std::unique_ptr<File> file_;
};

}  // namespace tmamba
