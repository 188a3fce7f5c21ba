// A SentencePiece model made lossless and fast.
//
// Text is cut into words first: a word is a run of spaces and what follows it up to the next space; a newline or a tab
// is a word of its own; words longer than kMaxWord bytes are cut. Words are encoded one by one and remembered, so that
// text is mostly looked up. No piece of a model trained here reaches over such a cut, so the result is that of encoding
// whole lines. Inside a word, what SentencePiece cannot give back (bytes that are no UTF-8, U+2581, which it uses for
// the space, and NUL) becomes byte pieces without its help.
#pragma once

#include <mutex>
#include <unordered_map>

#include "data/tokens/tokenizer.h"

namespace tmamba {

class SentencePieceTokenizer final : public Tokenizer {
 public:
  static constexpr size_t kMaxWord = 1024;

  // `model`: the bytes of a model file; `name` is used in messages. Throws UserError.
  SentencePieceTokenizer(const std::string& model, const std::string& name);
  ~SentencePieceTokenizer() override;

  std::string kind() const override { return "sentencepiece"; }
  int64_t vocab_size() const override { return static_cast<int64_t>(pieces_.size()); }
  int32_t document_end() const override { return document_end_; }
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> tokens) const override;
  int64_t bytes_of(int32_t token) const override { return static_cast<int64_t>(piece(token).size()); }
  std::string hash() const override { return hash_; }
  void save(const std::filesystem::path& path) const override;
  size_t stable_prefix(std::string_view text) const override;

 private:
  struct Model;
  struct StringHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  const std::string& piece(int32_t token) const;
  void read_pieces(const std::string& name);
  void check_lossless(const std::string& name) const;
  // Appends the tokens of one word.
  void encode_word(std::string_view word, std::vector<int32_t>& out) const;

  std::unique_ptr<Model> model_;
  std::string serialized_;
  std::string hash_;
  std::vector<std::string> pieces_;   // text of every token; empty for control tokens
  std::vector<int32_t> byte_tokens_;  // [256]
  int32_t document_end_ = -1;

  // Words met before, and where in `remembered_` their tokens are.
  struct Range {
    uint32_t begin, count;
  };
  mutable std::mutex mutex_;
  mutable std::unordered_map<std::string, Range, StringHash, std::equal_to<>> words_;
  mutable std::vector<int32_t> remembered_;
};

}  // namespace tmamba
