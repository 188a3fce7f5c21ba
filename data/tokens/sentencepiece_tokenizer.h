// A lossless and fast wrapper of a SentencePiece model.
//
// The text is split into words: a word is a run of spaces and the characters after it up to the next space, and a
// newline or a tab is a word of its own. Longer words are split after kMaxWord bytes. Words are encoded separately and
// cached, so most text is looked up. No piece of a model trained by train_sentencepiece crosses a word boundary, so the
// result equals that of encoding complete lines. SentencePiece cannot reproduce invalid UTF-8, NUL and U+2581 (its
// symbol for the space), nor spaces if the model was trained on text without any; these are encoded as byte pieces
// without it.
#pragma once

#include <mutex>
#include <unordered_map>

#include "data/tokens/tokenizer.h"

namespace tmamba {

class SentencePieceTokenizer final : public Tokenizer {
 public:
  static constexpr size_t kMaxWord = 1024;

  // `model` is the content of a model file, `name` its name for messages. Throws UserError if it is not a lossless
  // model.
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
  std::vector<std::string> pieces_;   // the text of every token; empty for control tokens
  std::vector<int32_t> byte_tokens_;  // [256]: the token of each byte
  int32_t document_end_ = -1;
  bool has_space_ = true;  // whether a space alone is a token

  // Cache of encoded words: the tokens of a word are a range of cached_tokens_.
  struct Range {
    uint32_t begin, count;
  };
  mutable std::mutex mutex_;  // guards the cache
  mutable std::unordered_map<std::string, Range, StringHash, std::equal_to<>> words_;
  mutable std::vector<int32_t> cached_tokens_;
};

}  // namespace tmamba
