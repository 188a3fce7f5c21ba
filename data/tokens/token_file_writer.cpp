#include <algorithm>
#include <array>

#include "data/hdf5/h5.h"
#include "data/tokens/token_file.h"
#include "data/tokens/tokenizer.h"

namespace tmamba {

namespace {
// Tokens per chunk. A random access reads and verifies one chunk: 128 KiB of uint16 or 256 KiB of uint32.
constexpr int64_t kChunk = int64_t{1} << 16;
constexpr int64_t kDocumentChunk = int64_t{1} << 12;
constexpr size_t kPending = size_t{16} * kChunk;  // values buffered before a write

// A 1-D dataset that grows at its end.
template <class T>
class Appender {
 public:
  Appender(H5Dataset dataset, H5Type memory) : dataset_(std::move(dataset)), memory_(memory) {}
  void add(T value) {
    pending_.push_back(value);
    if (pending_.size() >= kPending) flush();
  }
  void flush() {
    const auto count = static_cast<int64_t>(pending_.size());
    if (count == 0) return;
    dataset_.grow(written_ + count);
    dataset_.write(std::array{written_}, std::array{count}, memory_, pending_.data());
    written_ += count;
    pending_.clear();
  }
  int64_t size() const { return written_ + static_cast<int64_t>(pending_.size()); }

 private:
  H5Dataset dataset_;
  H5Type memory_;
  int64_t written_ = 0;
  std::vector<T> pending_;
};

TokenFileInfo info_of(const Tokenizer& tokenizer, const std::string& tokenizer_file, const std::string& split) {
  TokenFileInfo info;
  info.vocab_size = tokenizer.vocab_size();
  info.document_end = tokenizer.document_end();
  info.tokenizer_kind = tokenizer.kind();
  info.tokenizer_hash = tokenizer.hash();
  info.tokenizer_file = tokenizer_file;
  info.split = split;
  return info;
}
}  // namespace

struct TokenFileWriter::State {
  H5File file;
  TokenFileInfo info;
  Appender<uint32_t> tokens;
  Appender<int64_t> documents;
  bool in_document = false;
};

TokenFileWriter::TokenFileWriter(const std::filesystem::path& path, const TokenFileInfo& info,
                                 std::span<const uint16_t> token_bytes) {
  TM_CHECK(static_cast<int64_t>(token_bytes.size()) == info.vocab_size, "token_bytes has ", token_bytes.size(),
           " entries for a vocabulary of ", info.vocab_size);
  TM_CHECK(info.document_end >= 0 && info.document_end < info.vocab_size, "document_end ", info.document_end,
           " is out of the vocabulary of ", info.vocab_size);
  auto file = H5File::create(path, H5Format::checksummed);
  const H5Type type = info.vocab_size <= 65536 ? H5Type::u16 : H5Type::u32;
  file.create_dataset("token_bytes", H5Type::u16, {info.vocab_size},
                      {.chunk = {std::min(info.vocab_size, kChunk)}, .fletcher32 = true})
      .write(std::array<int64_t, 1>{0}, std::array{info.vocab_size}, H5Type::u16, token_bytes.data());
  auto tokens = file.create_dataset("tokens", type, {0}, {.chunk = {kChunk}, .growable = true, .fletcher32 = true});
  auto documents = file.create_dataset("documents", H5Type::i64, {0},
                                       {.chunk = {kDocumentChunk}, .growable = true, .fletcher32 = true});
  state_ = std::make_unique<State>(
      State{std::move(file), info, {std::move(tokens), H5Type::u32}, {std::move(documents), H5Type::i64}});
}

TokenFileWriter::TokenFileWriter(const std::filesystem::path& path, const Tokenizer& tokenizer,
                                 const std::string& tokenizer_file, const std::string& split)
    : TokenFileWriter(path, info_of(tokenizer, tokenizer_file, split), token_bytes_of(tokenizer)) {}

TokenFileWriter::~TokenFileWriter() = default;
TokenFileWriter::TokenFileWriter(TokenFileWriter&&) noexcept = default;

void TokenFileWriter::append(std::span<const int32_t> tokens) {
  if (tokens.empty()) return;
  if (!state_->in_document) state_->documents.add(state_->tokens.size());
  state_->in_document = true;
  for (int32_t token : tokens) {
    TM_CHECK(token >= 0 && token < state_->info.vocab_size, "token ", token, " is out of the vocabulary of ",
             state_->info.vocab_size);
    state_->tokens.add(static_cast<uint32_t>(token));
  }
}

void TokenFileWriter::end_document() {
  append(std::array{static_cast<int32_t>(state_->info.document_end)});
  state_->in_document = false;
}

int64_t TokenFileWriter::tokens() const { return state_->tokens.size(); }
int64_t TokenFileWriter::documents() const { return state_->documents.size(); }

void TokenFileWriter::close(int64_t source_bytes, const std::string& source_hash) {
  if (state_->in_document) end_document();
  state_->tokens.flush();
  state_->documents.flush();
  H5File& file = state_->file;
  const TokenFileInfo& info = state_->info;
  file.set_attribute("/", "format", std::string("transmamba tokens"));
  file.set_attribute("/", "version", info.version);
  file.set_attribute("/", "vocab_size", info.vocab_size);
  file.set_attribute("/", "document_end", info.document_end);
  file.set_attribute("/", "source_bytes", source_bytes);
  file.set_attribute("/", "source_hash", source_hash);
  file.set_attribute("/", "tokenizer_kind", info.tokenizer_kind);
  file.set_attribute("/", "tokenizer_hash", info.tokenizer_hash);
  file.set_attribute("/", "tokenizer_file", info.tokenizer_file);
  file.set_attribute("/", "split", info.split);
  file.close();
}

}  // namespace tmamba
