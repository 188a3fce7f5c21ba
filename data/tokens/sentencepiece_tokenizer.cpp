#include "data/tokens/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <cstdio>

#include "data/io/fs.h"
#include "data/io/sha256.h"
#include "data/tokens/utf8.h"
#include "kernels/base/check.h"

namespace tmamba {

namespace {
constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581, SentencePiece's space
constexpr size_t kMaxVocab = size_t{1} << 24;
constexpr size_t kMaxPieceBytes = 65535;
constexpr size_t kCachedWords = size_t{1} << 20;  // capacity of the word cache
constexpr size_t kCachedWordBytes = 64;           // longer words are not cached

bool is_single_char_word(char c) { return c == '\n' || c == '\t'; }

// End of the word that begins at `begin`; text.size() if the word may continue after the text.
size_t word_end(std::string_view text, size_t begin) {
  if (is_single_char_word(text[begin])) return begin + 1;
  const size_t limit = std::min(text.size(), begin + SentencePieceTokenizer::kMaxWord);
  size_t at = begin;
  while (at < limit && text[at] == ' ') ++at;
  while (at < limit && text[at] != ' ' && !is_single_char_word(text[at])) ++at;
  if (at < limit || limit == text.size()) return at;
  return begin + utf8_cut(text.substr(begin), SentencePieceTokenizer::kMaxWord);
}

// The text of a piece, with spaces for SentencePiece's space symbols.
std::string text_of_piece(const std::string& piece) {
  std::string text;
  for (size_t at = 0; at < piece.size();) {
    if (piece.compare(at, kSpaceSymbol.size(), kSpaceSymbol) == 0) {
      text += ' ';
      at += kSpaceSymbol.size();
    } else {
      text += piece[at++];
    }
  }
  return text;
}
}  // namespace

struct SentencePieceTokenizer::Model {
  sentencepiece::SentencePieceProcessor processor;
};

SentencePieceTokenizer::SentencePieceTokenizer(const std::string& model, const std::string& name)
    : model_(std::make_unique<Model>()), serialized_(model), hash_(sha256_hex(model)) {
  if (!model_->processor.LoadFromSerializedProto(model).ok()) {
    throw UserError(name + ": is not a SentencePiece model; train one with `transmamba tokenizer`");
  }
  read_pieces(name);
  check_lossless(name);
}

SentencePieceTokenizer::~SentencePieceTokenizer() = default;

void SentencePieceTokenizer::read_pieces(const std::string& name) {
  const auto& processor = model_->processor;
  const auto count = static_cast<size_t>(std::max(0, processor.GetPieceSize()));
  if (count == 0 || count > kMaxVocab) throw UserError(str(name, ": has a vocabulary of ", count, " tokens"));
  document_end_ = processor.eos_id();
  if (document_end_ < 0)
    throw UserError(name +
                    ": has no end-of-sentence token, which is needed to end documents; train one with "
                    "`transmamba tokenizer`");
  has_space_ = processor.PieceToId(absl::string_view(kSpaceSymbol.data(), kSpaceSymbol.size())) != processor.unk_id();
  byte_tokens_.assign(256, -1);
  pieces_.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const int id = static_cast<int>(i);
    const std::string& text = processor.IdToPiece(id);
    unsigned byte = 0;
    if (processor.IsByte(id) && std::sscanf(text.c_str(), "<0x%2X>", &byte) == 1) {
      pieces_[i] = std::string(1, static_cast<char>(byte));
      byte_tokens_[byte] = id;
    } else if (!processor.IsControl(id) && !processor.IsUnknown(id)) {
      pieces_[i] = text_of_piece(text);
    }
    if (pieces_[i].size() > kMaxPieceBytes)
      throw UserError(str(name, ": token ", i, " is longer than ", kMaxPieceBytes, " bytes"));
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    if (byte_tokens_[byte] < 0) {
      throw UserError(
          str(name, ": has no token for byte ", byte, "; train it with byte fallback, as `transmamba tokenizer` does"));
    }
  }
}

// Detects normalisation, an added leading space and collapsed spaces.
void SentencePieceTokenizer::check_lossless(const std::string& name) const {
  for (const std::string& text :
       {std::string("word"), std::string("  two  spaces "), std::string("line\n\n\tline \n"),
        std::string("e\xCC\x81 \xC3\xA9 \xEF\xAC\x81 \xEF\xBC\xA1 \xC2\xA0 \xE2\x80\x89 \xC2\xBD \xE2\x96\x81\r\n")}) {
    std::vector<int32_t> tokens = encode(text);
    if (decode(tokens) != text) {
      throw UserError(name +
                      ": is a SentencePiece model that changes the text (normalisation, a dummy prefix or removed "
                      "spaces); train one "
                      "with `transmamba tokenizer`");
    }
  }
}

const std::string& SentencePieceTokenizer::piece(int32_t token) const {
  if (token < 0 || token >= vocab_size())
    throw UserError(str("token ", token, " is out of the vocabulary of ", vocab_size()));
  return pieces_[static_cast<size_t>(token)];
}

void SentencePieceTokenizer::encode_word(std::string_view word, std::vector<int32_t>& out) const {
  std::vector<int> ids;
  const auto flush = [&](std::string_view part) {
    if (part.empty()) return;
    TM_CHECK(model_->processor.Encode(absl::string_view(part.data(), part.size()), &ids).ok(),
             "SentencePiece cannot encode a word of ", part.size(), " bytes");
    out.insert(out.end(), ids.begin(), ids.end());
  };
  size_t begin = 0, at = 0;
  while (at < word.size()) {
    const size_t length = utf8_length(word, at);
    const bool by_bytes =
        length == 0 || word[at] == '\0' || word.substr(at, length) == kSpaceSymbol || (word[at] == ' ' && !has_space_);
    const size_t next = at + std::max<size_t>(length, 1);
    if (by_bytes) {
      flush(word.substr(begin, at - begin));
      for (size_t i = at; i < next; ++i) out.push_back(byte_tokens_[static_cast<uint8_t>(word[i])]);
      begin = next;
    }
    at = next;
  }
  flush(word.substr(begin));
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  const std::lock_guard lock(mutex_);
  std::vector<int32_t> out;
  out.reserve(text.size() / 3 + 8);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = word_end(text, begin);
    const std::string_view word = text.substr(begin, end - begin);
    begin = end;
    if (const auto found = words_.find(word); found != words_.end()) {
      const auto first = cached_tokens_.begin() + found->second.begin;
      out.insert(out.end(), first, first + found->second.count);
      continue;
    }
    const size_t before = out.size();
    encode_word(word, out);
    if (word.size() > kCachedWordBytes) continue;
    if (words_.size() >= kCachedWords) {
      words_.clear();
      cached_tokens_.clear();
    }
    words_.emplace(word,
                   Range{static_cast<uint32_t>(cached_tokens_.size()), static_cast<uint32_t>(out.size() - before)});
    cached_tokens_.insert(cached_tokens_.end(), out.begin() + static_cast<int64_t>(before), out.end());
  }
  return out;
}

std::string SentencePieceTokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  for (int32_t token : tokens) text += piece(token);
  return text;
}

size_t SentencePieceTokenizer::stable_prefix(std::string_view text) const {
  // A new word begins after a newline.
  const size_t newline = text.rfind('\n');
  size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
  while (begin < text.size()) {
    const size_t end = word_end(text, begin);
    if (end == text.size() && !is_single_char_word(text[begin])) break;
    begin = end;
  }
  return begin;
}

void SentencePieceTokenizer::save(const std::filesystem::path& path) const {
  replace_text_durably(std::filesystem::absolute(path), serialized_, random_nonce());
}

}  // namespace tmamba
