// Token files: HDF5 with `/tokens` (1-D, uint16 or uint32, chunked, with checksums), `/documents` (int64 start
// offsets),
// `/token_bytes` (uint16, bytes of text per token id) and attributes naming the tokenizer, its vocabulary and the
// source text.
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
  int64_t document_end = 0;    // the token after every document
  std::string tokenizer_kind;  // "bytes", "sentencepiece", ...
  std::string tokenizer_hash;
  std::string tokenizer_file;  // file beside the token file, or "bytes"
  std::string source_hash;     // SHA-256 of the text, hexadecimal
  std::string split;           // "train" or "valid"
  int64_t version = 1;
};

// A token file open for reading. Foreign bytes: everything is checked when it is opened, and errors are UserErrors that
// name the file and what is wrong with it (missing, empty, not HDF5, truncated, another version, links or filters that
// are not allowed, a token out of the vocabulary when read).
class TokenFile {
 public:
  // Files of at most `memory_limit` bytes of tokens are read whole at the first read(), others piece by piece.
  explicit TokenFile(const std::filesystem::path& path, int64_t memory_limit = int64_t{256} << 20);
  ~TokenFile();
  TokenFile(TokenFile&&) noexcept;
  TokenFile(const TokenFile&) = delete;

  const TokenFileInfo& info() const { return info_; }
  // Tokens [begin, begin + out.size()). Not for several threads at once.
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

// Writes a token file, in pieces. uint16 where the vocabulary has at most 65536 tokens, else uint32. The file is whole
// only after close(); write it under a temporary name and rename it. Throws Error where it cannot be written.
class TokenFileWriter {
 public:
  // Of `info`, vocab_size, document_end, tokenizer_* and split are used; `token_bytes` has vocab_size entries.
  TokenFileWriter(const std::filesystem::path& path, const TokenFileInfo& info, std::span<const uint16_t> token_bytes);
  // Fills info from the tokenizer. `tokenizer_file`: what TokenFileInfo::tokenizer_file is to be.
  TokenFileWriter(const std::filesystem::path& path, const Tokenizer& tokenizer, const std::string& tokenizer_file,
                  const std::string& split);
  ~TokenFileWriter();
  TokenFileWriter(TokenFileWriter&&) noexcept;

  // More tokens of the current document. Throws where one is out of the vocabulary.
  void append(std::span<const int32_t> tokens);
  // Writes document_end; what is appended next begins a document.
  void end_document();
  int64_t tokens() const;
  int64_t documents() const;
  // Writes the rest and the attributes and closes the file. An unfinished document is ended first.
  void close(int64_t source_bytes, const std::string& source_hash);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tmamba
