#include "data/tokens/token_file.h"

#include <algorithm>
#include <array>
#include <optional>

#include "data/hdf5/h5.h"
#include "data/io/sha256.h"

namespace tmamba {

namespace {
constexpr int64_t kVersion = 1;
constexpr const char* kFormat = "transmamba tokens";
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kCacheBytes = int64_t{32} << 20;  // chunk cache of files that are not loaded into memory
constexpr std::array<int64_t, 1> kOrigin{0};

H5Dataset vector_dataset(const H5File& file, const std::string& name, int64_t cache_bytes = 0) {
  auto dataset = file.dataset(name, cache_bytes);
  if (dataset.info().shape.size() != 1) {
    throw UserError(
        str(file.path().string(), ": dataset ", name, " has ", dataset.info().shape.size(), " dimensions, expected 1"));
  }
  return dataset;
}

void expect_type(const H5File& file, const H5Dataset& dataset, std::span<const H5Type> allowed) {
  if (std::find(allowed.begin(), allowed.end(), dataset.info().type) != allowed.end()) return;
  std::string names;
  for (H5Type type : allowed) names += (names.empty() ? "" : " or ") + std::string(name_of(type));
  throw UserError(str(file.path().string(), ": dataset ", dataset.name(), " holds ", name_of(dataset.info().type),
                      ", expected ", names));
}

void check_format(const H5File& file) {
  if (!file.has_attribute("/", "format") || file.string_attribute("/", "format") != kFormat) {
    throw UserError(file.path().string() +
                    ": is an HDF5 file, but not a token file; create one with `transmamba prepare`");
  }
  const int64_t version = file.int_attribute("/", "version");
  if (version != kVersion) {
    throw UserError(str(file.path().string(), ": is a token file of version ", version, ", this program reads version ",
                        kVersion, "; create it again with `transmamba prepare --overwrite`"));
  }
}

TokenFileInfo read_info(const H5File& file) {
  TokenFileInfo info;
  info.path = file.path();
  info.version = kVersion;
  info.vocab_size = file.int_attribute("/", "vocab_size");
  info.document_end = file.int_attribute("/", "document_end");
  info.source_bytes = file.int_attribute("/", "source_bytes");
  info.tokenizer_kind = file.string_attribute("/", "tokenizer_kind");
  info.tokenizer_hash = file.string_attribute("/", "tokenizer_hash");
  info.tokenizer_file = file.string_attribute("/", "tokenizer_file");
  info.source_hash = file.string_attribute("/", "source_hash");
  info.split = file.string_attribute("/", "split");
  const auto refuse = [&](const std::string& what) { throw UserError(file.path().string() + ": " + what); };
  if (info.vocab_size < 1 || info.vocab_size > kMaxVocab) refuse(str("vocab_size is ", info.vocab_size));
  if (info.document_end < 0 || info.document_end >= info.vocab_size) {
    refuse(str("document_end is ", info.document_end, ", out of the vocabulary of ", info.vocab_size));
  }
  if (info.source_bytes < 0) refuse(str("source_bytes is ", info.source_bytes));
  // The name is joined to this file's folder, so it must not lead out of it.
  if (info.tokenizer_file != std::filesystem::path(info.tokenizer_file).filename()) {
    refuse("tokenizer_file \"" + info.tokenizer_file + "\" is not the name of a file beside it");
  }
  return info;
}

// Converts tokens to int32 and returns the largest; 0 if there are none.
template <class Stored>
int64_t widen(const Stored* in, std::span<int32_t> out) {
  Stored largest = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    largest = std::max(largest, in[i]);
    out[i] = static_cast<int32_t>(in[i]);
  }
  return largest;
}
}  // namespace

std::string identity_of(const TokenFileInfo& info) {
  return sha256_hex(str(info.source_hash, "\n", info.tokenizer_hash, "\n", info.vocab_size, " ", info.document_end, " ",
                        info.tokens, " ", info.documents, " ", info.source_bytes));
}

struct TokenFile::File {
  H5Dataset tokens;
  H5Dataset documents;
  bool in_memory = false;         // `memory` caches all tokens
  std::vector<std::byte> memory;  // stored type: all tokens, or those of the last read
};

TokenFile::TokenFile(const std::filesystem::path& path, int64_t memory_limit) {
  std::error_code ignored;
  if (std::filesystem::status(path, ignored).type() == std::filesystem::file_type::not_found) {
    throw UserError(path.string() + ": no such file; create it with `transmamba prepare`");
  }
  const auto file = H5File::open_read(path);
  check_format(file);
  info_ = read_info(file);
  auto tokens = vector_dataset(file, "tokens", kCacheBytes), documents = vector_dataset(file, "documents");
  const auto token_bytes = vector_dataset(file, "token_bytes");
  expect_type(file, tokens, std::array{H5Type::u16, H5Type::u32});
  expect_type(file, documents, std::array{H5Type::i64});
  expect_type(file, token_bytes, std::array{H5Type::u16});
  info_.tokens = tokens.info().shape[0];
  info_.documents = documents.info().shape[0];
  if (token_bytes.info().shape[0] != info_.vocab_size) {
    throw UserError(str(path.string(), ": token_bytes has ", token_bytes.info().shape[0],
                        " entries for a vocabulary of ", info_.vocab_size));
  }
  if (info_.documents > info_.tokens) {
    throw UserError(str(path.string(), ": ", info_.documents, " documents, but only ", info_.tokens, " tokens"));
  }
  token_bytes_.resize(static_cast<size_t>(info_.vocab_size));
  token_bytes.read(kOrigin, std::array{info_.vocab_size}, H5Type::u16, token_bytes_.data());
  const bool in_memory = info_.tokens * static_cast<int64_t>(size_of(tokens.info().type)) <= memory_limit;
  file_ = std::make_unique<File>(File{std::move(tokens), std::move(documents), in_memory, {}});
}

TokenFile::~TokenFile() = default;
TokenFile::TokenFile(TokenFile&&) noexcept = default;

void TokenFile::read(int64_t begin, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  TM_CHECK(begin >= 0 && begin <= info_.tokens && count <= info_.tokens - begin, info_.path.string(), ": tokens [",
           begin, ", ", begin + count, ") of ", info_.tokens);
  if (count == 0) return;
  const H5Type type = file_->tokens.info().type;
  auto& memory = file_->memory;
  const auto fill = [&](int64_t from, int64_t n) {
    memory.resize(static_cast<size_t>(n) * size_of(type));
    file_->tokens.read(std::array{from}, std::array{n}, type, memory.data());
  };
  if (file_->in_memory && memory.empty()) fill(0, info_.tokens);
  if (!file_->in_memory) fill(begin, count);
  const std::byte* data = memory.data() + (file_->in_memory ? static_cast<size_t>(begin) * size_of(type) : 0);
  const int64_t largest = type == H5Type::u16 ? widen(reinterpret_cast<const uint16_t*>(data), out)
                                              : widen(reinterpret_cast<const uint32_t*>(data), out);
  if (largest < info_.vocab_size) return;
  const auto bad =
      std::find_if(out.begin(), out.end(), [&](int32_t token) { return token < 0 || token >= info_.vocab_size; });
  throw UserError(str(info_.path.string(), ": token ", static_cast<uint32_t>(*bad), " at position ",
                      begin + (bad - out.begin()), " is out of the vocabulary of ", info_.vocab_size,
                      "; the file is damaged"));
}

std::vector<int64_t> TokenFile::documents() const {
  std::vector<int64_t> starts(static_cast<size_t>(info_.documents));
  file_->documents.read(kOrigin, std::array{info_.documents}, H5Type::i64, starts.data());
  for (size_t i = 0; i < starts.size(); ++i) {
    const bool in_order = i == 0 ? starts[i] == 0 : starts[i] > starts[i - 1];
    if (!in_order || starts[i] >= info_.tokens) {
      throw UserError(str(info_.path.string(), ": document ", i, " begins at token ", starts[i],
                          ", which is out of order or after the last token; the file is damaged"));
    }
  }
  return starts;
}

}  // namespace tmamba
