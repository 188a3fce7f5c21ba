// What the tests of prepare() share: inputs, and the documents of its outputs.
#pragma once

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "data/io/sha256.h"
#include "data/tokens/corpus.h"
#include "data/tokens/prepare.h"
#include "data/tokens/token_file.h"
#include "data/tokens/tokenizer.h"
#include "tests/data/text.h"

namespace tmamba {

inline void write_gzip(const std::filesystem::path& path, const std::string& content) {
  const gzFile file = gzopen(path.c_str(), "wb");
  ASSERT_EQ(gzwrite(file, content.data(), static_cast<unsigned>(content.size())), static_cast<int>(content.size()));
  ASSERT_EQ(gzclose(file), Z_OK);
}

inline std::string json_line(const std::string& text) {
  return nlohmann::json{{"id", 1}, {"text", text}}.dump() + "\n";
}

// The documents of a token file, as text.
inline std::vector<std::string> documents_of(const std::filesystem::path& path, const Tokenizer& tokenizer) {
  const TokenFile file(path);
  std::vector<int32_t> tokens(static_cast<size_t>(file.info().tokens));
  file.read(0, tokens);
  auto starts = file.documents();
  starts.push_back(file.info().tokens);
  std::vector<std::string> documents;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const auto document =
        std::span(tokens).subspan(static_cast<size_t>(starts[i]), static_cast<size_t>(starts[i + 1] - starts[i]));
    EXPECT_EQ(document.back(), tokenizer.document_end());
    documents.push_back(tokenizer.decode(document));
  }
  return documents;
}

inline std::string joined(const std::vector<std::string>& parts) {
  return std::accumulate(parts.begin(), parts.end(), std::string());
}

inline std::set<std::string> names_in(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

class Prepare : public ::testing::Test {
 protected:
  PrepareOptions options(std::vector<std::filesystem::path> inputs) {
    PrepareOptions out;
    out.inputs = std::move(inputs);
    out.output = folder_ / "out";
    return out;
  }
  std::vector<std::string> train(const Tokenizer& tokenizer) {
    return documents_of(folder_ / "out/train.h5", tokenizer);
  }
  std::vector<std::string> valid(const Tokenizer& tokenizer) {
    return documents_of(folder_ / "out/valid.h5", tokenizer);
  }

  std::filesystem::path sentencepiece() {
    testing_files::write_file(folder_ / "licence", testing_files::licence());
    train_sentencepiece({folder_ / "licence"}, folder_ / "sp.model", {.vocab_size = 500});
    return folder_ / "sp.model";
  }

  testing_files::TempFolder folder_;
  std::unique_ptr<Tokenizer> bytes_ = load_tokenizer("bytes");
};

}  // namespace tmamba
