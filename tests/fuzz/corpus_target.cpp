#include <nlohmann/json.hpp>

#include "data/tokens/corpus.h"
#include "data/tokens/json_line.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace {

std::string documents_of(const std::filesystem::path& path, const CorpusOptions& options) {
  std::string text;
  CorpusHandler handler;
  handler.text = [&](std::string_view part) { text += part; };
  handler.end_document = [&] { text += "\n<end>\n"; };
  SkippedRecords skipped;
  const CorpusSummary summary = read_corpus(path, options, handler, skipped);
  require(summary.text_bytes <= static_cast<int64_t>(text.size()), "more text than was passed on");
  return text;
}

void file(const std::filesystem::path& path) { documents_of(path, {}); }

// A JSON line that another parser accepts has the same text.
void line(const std::string& input) {
  const auto object = nlohmann::json::parse(input, nullptr, false);
  std::string buffer;
  const std::string text(json_line_text(input, "text", buffer));
  require(object.is_discarded() || (object.is_object() && object["text"] == text), "another text than nlohmann's");
}

// The first byte selects the options; the rest is a file, which is read alike in blocks of any size.
void bytes(const std::string& input) {
  Bytes in(input);
  CorpusOptions options;
  const int64_t choice = in.below(12);
  options.format = static_cast<CorpusFormat>(choice % 3);
  options.skip_errors = choice / 3 % 2 == 1;
  options.separator = choice / 6 == 1 ? "ab" : "";
  const std::string content = in.rest();
  if (content.find('\n') == std::string::npos) {
    try {
      line(content);
    } catch (const UserError&) {
    }
  }
  const auto path = scratch_file("corpus", content);
  const std::string whole = documents_of(path, options);
  options.buffer_bytes = 3;
  require(documents_of(path, options) == whole, "documents that depend on the block size");
}

}  // namespace

const Target corpus{"corpus", bytes, file};

}  // namespace tmamba::fuzz
