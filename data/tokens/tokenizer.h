// Tokenizers: text <-> token ids. Two kinds: "bytes" (ids 0..255 are the bytes, 256 ends a document) and SentencePiece.
// Both are lossless for any bytes, valid UTF-8 or not: decode(encode(text)) == text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tmamba {

// May be used from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // "bytes" or "sentencepiece".
  virtual std::string kind() const = 0;
  virtual int64_t vocab_size() const = 0;
  // The token written after every document.
  virtual int32_t document_end() const = 0;
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Ids out of range throw UserError; document_end and other control tokens decode to nothing.
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;
  // Bytes of text that one token stands for; 0 for document_end and other control tokens. Sums to the text's length
  // over encode(text), which is what bits per byte divides by.
  virtual int64_t bytes_of(int32_t token) const = 0;
  // Hash that names this vocabulary, the same on every machine.
  virtual std::string hash() const = 0;
  // Writes the tokenizer to `path` (one file, read back by load_tokenizer).
  virtual void save(const std::filesystem::path& path) const = 0;
  // Length n of a beginning of `text` that can be encoded by itself: whatever text follows, encode(text + more) is
  // encode(text[0, n)) and then encode(text[n, end) + more). At most the last word is left over, and it is short.
  virtual size_t stable_prefix(std::string_view text) const = 0;
};

// "bytes", or the path of a file that Tokenizer::save or train_sentencepiece wrote. Throws UserError, also for a
// SentencePiece model that is not lossless (one with normalisation, a dummy prefix, or without byte fallback).
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& name_or_path);
// The same from the bytes of a file; `name` stands for it in messages.
std::unique_ptr<Tokenizer> parse_tokenizer(const std::string& content, const std::string& name);

// bytes_of every token, as token files store it.
std::vector<uint16_t> token_bytes_of(const Tokenizer& tokenizer);

struct SentencePieceOptions {
  int64_t vocab_size = 4096;
  std::string model_type = "bpe";  // or "unigram"
  // Where the inputs are larger, lines are drawn at random, each with the same chance, until this is full.
  int64_t max_training_bytes = int64_t{64} << 20;
  uint64_t seed = 0;
  bool verbose = false;
  std::string json_field = "text";  // of .jsonl inputs
};

// Trains a lossless SentencePiece model (identity normalisation, byte fallback, newline and tab as tokens of their own)
// on text files (see corpus.h for what is read) and writes it to `output`. The same inputs and options give the same
// bytes. Throws UserError, for example where the text does not support so large a vocabulary.
void train_sentencepiece(const std::vector<std::filesystem::path>& inputs, const std::filesystem::path& output,
                         const SentencePieceOptions& options);

}  // namespace tmamba
