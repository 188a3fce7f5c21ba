// The byte tokenizer and load_tokenizer().
#include "data/tokens/tokenizer.h"

#include <nlohmann/json.hpp>

#include "data/io/fs.h"
#include "data/io/sha256.h"
#include "data/tokens/sentencepiece_tokenizer.h"
#include "kernels/base/check.h"

namespace tmamba {

namespace {
constexpr int64_t kMaxFileBytes = int64_t{256} << 20;

class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kDocumentEnd = 256;

  std::string kind() const override { return "bytes"; }
  int64_t vocab_size() const override { return kDocumentEnd + 1; }
  int32_t document_end() const override { return kDocumentEnd; }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> tokens(text.size());
    for (size_t i = 0; i < text.size(); ++i) tokens[i] = static_cast<uint8_t>(text[i]);
    return tokens;
  }
  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    text.reserve(tokens.size());
    for (int32_t token : tokens) {
      if (bytes_of(token) == 1) text += static_cast<char>(token);
    }
    return text;
  }
  int64_t bytes_of(int32_t token) const override {
    if (token < 0 || token > kDocumentEnd)
      throw UserError(str("token ", token, " is out of the vocabulary of ", vocab_size()));
    return token == kDocumentEnd ? 0 : 1;
  }
  std::string hash() const override { return sha256_hex("transmamba tokenizer bytes: 0..255 bytes, 256 document end"); }
  void save(const std::filesystem::path& path) const override {
    replace_text_durably(std::filesystem::absolute(path),
                         nlohmann::json{{"transmamba_tokenizer", "bytes"}}.dump() + "\n", random_nonce());
  }
  size_t stable_prefix(std::string_view text) const override { return text.size(); }
};

// Whether ByteTokenizer::save wrote this content.
bool is_byte_tokenizer(const std::string& content) {
  if (content.empty() || content[0] != '{') return false;
  const auto json = nlohmann::json::parse(content, nullptr, false);
  return json.is_object() && json.value("transmamba_tokenizer", nlohmann::json()) == "bytes";
}

std::string read_tokenizer_file(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    throw UserError(path.string() + ": no such tokenizer; give \"bytes\" or a file written by `transmamba tokenizer`");
  }
  if (!std::filesystem::is_regular_file(status)) throw UserError(path.string() + ": is not a tokenizer file");
  try {
    return read_text(std::filesystem::canonical(path), kMaxFileBytes);
  } catch (const UserError&) {
    throw;
  } catch (const std::exception& failure) {
    throw UserError(failure.what());
  }
}
}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& name_or_path) {
  if (name_or_path == "bytes") return std::make_unique<ByteTokenizer>();
  return parse_tokenizer(read_tokenizer_file(name_or_path), name_or_path);
}

std::unique_ptr<Tokenizer> parse_tokenizer(const std::string& content, const std::string& name) {
  if (content.empty()) throw UserError(name + ": is empty, expected a tokenizer");
  if (is_byte_tokenizer(content)) return std::make_unique<ByteTokenizer>();
  return std::make_unique<SentencePieceTokenizer>(content, name);
}

std::vector<uint16_t> token_bytes_of(const Tokenizer& tokenizer) {
  std::vector<uint16_t> bytes(static_cast<size_t>(tokenizer.vocab_size()));
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<uint16_t>(tokenizer.bytes_of(static_cast<int32_t>(i)));
  return bytes;
}

}  // namespace tmamba
