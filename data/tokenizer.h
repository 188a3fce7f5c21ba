// Tokenizers: text <-> token ids. Two kinds: "bytes" (ids 0..255 are the bytes, 256 ends a document) and SentencePiece.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tmamba {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // "bytes" or "sentencepiece".
  virtual std::string kind() const = 0;
  virtual int64_t vocab_size() const = 0;
  // The token written after every document.
  virtual int32_t document_end() const = 0;
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Ids out of range throw UserError; document_end decodes to nothing.
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;
  // Bytes of text that one token stands for; 0 for document_end and other control tokens. Sums to the text's length
  // over encode(text), which is what bits per byte divides by.
  virtual int64_t bytes_of(int32_t token) const = 0;
  // Hash that names this vocabulary, the same on every machine.
  virtual std::string hash() const = 0;
  // Writes the tokenizer to `path` (one file, read back by load_tokenizer).
  virtual void save(const std::filesystem::path& path) const = 0;
};

// "bytes", or the path of a file that Tokenizer::save or train_sentencepiece wrote. Throws UserError.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& name_or_path);

struct SentencePieceOptions {
  int64_t vocab_size = 4096;
  std::string model_type = "bpe";   // or "unigram"
  int64_t max_training_bytes = int64_t{64} << 20;
  uint64_t seed = 0;
  bool verbose = false;
};

// Trains a lossless SentencePiece model (identity normalisation, byte fallback, newline as a token) on text files and
// writes it to `output`.
void train_sentencepiece(const std::vector<std::filesystem::path>& inputs, const std::filesystem::path& output,
                         const SentencePieceOptions& options);

}  // namespace tmamba
