// Token files: HDF5 with `/tokens` (1-D, uint16 or uint32, chunked, with checksums), `/documents` (int64, index of each
// document's first token), `/token_bytes` (uint16, bytes of text per token id) and attributes that identify the
// tokenizer, its vocabulary and the source text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace tmamba {

class Tokenizer;

struct TokenFileInfo {
  std::filesystem::path path;
  int64_t tokens = 0;
  int64_t documents = 0;
  int64_t vocab_size = 0;
  int64_t source_bytes = 0;    // bytes of text in this file
  int64_t document_end = 0;    // id of the token that ends every document
  std::string tokenizer_kind;  // "bytes", "sentencepiece", ...
  std::string tokenizer_hash;
  std::string tokenizer_file;  // name of a file in the same folder, or "bytes"
  std::string source_hash;     // SHA-256 of the text, hexadecimal
  std::string split;           // "train" or "valid"
  int64_t version = 1;
};

// What the file holds, whatever its path: a hash over the content hash that `prepare` stored, the tokenizer and the
// sizes.
std::string identity_of(const TokenFileInfo& info);

// A token file open for reading, treated as untrusted input: the constructor checks its structure and read() checks the
// tokens. Errors are UserErrors that name the file and the problem (missing, empty, not HDF5, truncated, another
// version, links or filters that are not allowed, a token out of the vocabulary).
class TokenFile {
 public:
  // The first read() loads all tokens if they take at most `memory_limit` bytes; otherwise each read() loads its range.
  explicit TokenFile(const std::filesystem::path& path, int64_t memory_limit = int64_t{256} << 20);
  ~TokenFile();
  TokenFile(TokenFile&&) noexcept;
  TokenFile(const TokenFile&) = delete;

  const TokenFileInfo& info() const { return info_; }
  // Reads tokens [begin, begin + out.size()). Not thread-safe.
  void read(int64_t begin, std::span<int32_t> out) const;
  // [vocab_size]: bytes of text per token id.
  const std::vector<uint16_t>& token_bytes() const { return token_bytes_; }
  // Index of the first token of every document, ascending.
  std::vector<int64_t> documents() const;

 private:
  struct File;
  TokenFileInfo info_;
  std::vector<uint16_t> token_bytes_;
  std::unique_ptr<File> file_;
};

// Writes a token file incrementally, as uint16 if the vocabulary has at most 65536 tokens, else as uint32. The file is
// complete only after close(), so write it under a temporary name and rename it. Throws Error if it cannot be written.
class TokenFileWriter {
 public:
  // Uses vocab_size, document_end, tokenizer_* and split of `info`; `token_bytes` has vocab_size entries.
  TokenFileWriter(const std::filesystem::path& path, const TokenFileInfo& info, std::span<const uint16_t> token_bytes);
  // Fills the info from the tokenizer; `tokenizer_file` becomes TokenFileInfo::tokenizer_file.
  TokenFileWriter(const std::filesystem::path& path, const Tokenizer& tokenizer, const std::string& tokenizer_file,
                  const std::string& split);
  ~TokenFileWriter();
  TokenFileWriter(TokenFileWriter&&) noexcept;

  // Appends to the current document. Throws Error if a token is out of the vocabulary.
  void append(std::span<const int32_t> tokens);
  // Appends document_end; the next append() begins a new document.
  void end_document();
  int64_t tokens() const;
  int64_t documents() const;
  // Ends an open document, writes buffered tokens and the attributes, and closes the file.
  void close(int64_t source_bytes, const std::string& source_hash);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tmamba
