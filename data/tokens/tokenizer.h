// Tokenizers convert text to token ids and back. There are two kinds: "bytes" (ids 0..255 are the bytes, 256 ends a
// document) and SentencePiece. Both are lossless for any bytes, even invalid UTF-8: decode(encode(text)) == text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokens/corpus.h"

namespace tmamba {

// Thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // "bytes" or "sentencepiece".
  virtual std::string kind() const = 0;
  virtual int64_t vocab_size() const = 0;
  // The token that ends every document.
  virtual int32_t document_end() const = 0;
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Throws UserError if an id is out of range. document_end and other control tokens decode to nothing.
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;
  // Bytes of text of one token; 0 for document_end and other control tokens. The sum over encode(text) is the length of
  // the text, the denominator of bits per byte.
  virtual int64_t bytes_of(int32_t token) const = 0;
  // Identifies the vocabulary; the same on every machine.
  virtual std::string hash() const = 0;
  // Writes the tokenizer to the file `path`, which load_tokenizer reads.
  virtual void save(const std::filesystem::path& path) const = 0;
  // Length n of a prefix of `text` that can be encoded separately: for any text that follows, encode(text + more)
  // equals encode(text[0, n)) followed by encode(text[n, end) + more). The remainder is at most the last word.
  virtual size_t stable_prefix(std::string_view text) const = 0;
};

// Loads "bytes" or the path of a file that Tokenizer::save or train_sentencepiece wrote. Throws UserError if there is
// no such file or it is a SentencePiece model that is not lossless (with normalisation, a dummy prefix, or without byte
// fallback).
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& name_or_path);
// The same from the content of a file; `name` is used in messages.
std::unique_ptr<Tokenizer> parse_tokenizer(const std::string& content, const std::string& name);

// bytes_of every token, as token files store it.
std::vector<uint16_t> token_bytes_of(const Tokenizer& tokenizer);

struct SentencePieceOptions {
  int64_t vocab_size = 4096;
  std::string model_type = "bpe";  // or "unigram"
  // If the inputs are larger, training uses a uniform random sample of their lines of about this size.
  int64_t max_training_bytes = int64_t{64} << 20;
  uint64_t seed = 0;
  bool verbose = false;
  CorpusOptions corpus = {};  // how the inputs are read
};

// Trains a lossless SentencePiece model (identity normalisation, byte fallback, newline and tab as separate tokens) on
// text files (corpus.h describes the formats; "-" is standard input) and writes it to `output`. Characters that are too
// rare for the vocabulary are left to the byte tokens. The same inputs and options give the same bytes. Throws
// UserError, for example if the text is too small for the vocabulary. Returns the records that were skipped.
SkippedRecords train_sentencepiece(const std::vector<std::filesystem::path>& inputs,
                                   const std::filesystem::path& output, const SentencePieceOptions& options);

}  // namespace tmamba
