#include "data/tokens/corpus.h"

#include <zlib.h>

#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/base/check.h"

namespace tmamba {

namespace {
constexpr size_t kMaxLine = size_t{1} << 30;  // of JSON

void check_is_file(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw UserError(path.string() + ": no such file");
  if (std::filesystem::is_directory(status)) throw UserError(path.string() + ": is a folder; give the files in it");
  if (!std::filesystem::is_regular_file(status)) throw UserError(path.string() + ": is not a regular file");
  if (std::filesystem::file_size(path) == 0) throw UserError(path.string() + ": is empty");
}

// Reads a file through zlib, which returns uncompressed files unchanged.
class Source {
 public:
  explicit Source(const std::filesystem::path& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
    if (file_ == nullptr) throw UserError(path.string() + ": cannot be opened: " + std::strerror(errno));
    gzbuffer(file_, 1 << 18);
  }
  ~Source() { gzclose_r(file_); }
  Source(const Source&) = delete;

  // Up to block.size() bytes; empty at the end of the file.
  std::string_view read(std::vector<char>& block) {
    const int count = gzread(file_, block.data(), static_cast<unsigned>(block.size()));
    int code = Z_OK;
    const char* reason = gzerror(file_, &code);
    // zlib reads a truncated compressed file to its end and reports Z_BUF_ERROR only then.
    if (count < 0 || code == Z_BUF_ERROR) {
      const bool system = code == Z_ERRNO;
      throw UserError(path_.string() + ": cannot be read: " + (system ? std::strerror(errno) : reason) +
                      (system ? "" : "; the compressed file may be truncated"));
    }
    return {block.data(), static_cast<size_t>(count)};
  }
  int64_t offset() const { return gzoffset(file_); }
  bool compressed() const { return gzdirect(file_) == 0; }

 private:
  std::filesystem::path path_;
  gzFile file_;
};

// Splits plain text into documents at the separator.
class PlainParser {
 public:
  PlainParser(const CorpusOptions& options, const CorpusHandler& handler)
      : separator_(options.separator), handler_(handler) {}

  void add(std::string_view block) {
    if (separator_.empty()) return handler_.text(block);
    rest_ += block;
    size_t begin = 0;
    for (size_t at; (at = rest_.find(separator_, begin)) != std::string::npos; begin = at + separator_.size()) {
      handler_.text(std::string_view(rest_).substr(begin, at - begin));
      handler_.end_document();
    }
    // The last bytes may be the beginning of a separator.
    const size_t keep = std::min(rest_.size() - begin, separator_.size() - 1);
    handler_.text(std::string_view(rest_).substr(begin, rest_.size() - begin - keep));
    rest_.erase(0, rest_.size() - keep);
  }
  void finish() {
    handler_.text(rest_);
    handler_.end_document();
  }

 private:
  const std::string& separator_;
  const CorpusHandler& handler_;
  std::string rest_;
};

// Extracts the text from JSON lines.
class JsonParser {
 public:
  JsonParser(const std::filesystem::path& path, const CorpusOptions& options, const CorpusHandler& handler)
      : path_(path), field_(options.json_field), handler_(handler) {}

  void add(std::string_view block) {
    for (size_t at; (at = block.find('\n')) != std::string_view::npos; block.remove_prefix(at + 1)) {
      line_ += block.substr(0, at);
      end_line();
    }
    line_ += block;
    if (line_.size() > kMaxLine) fail(str("is longer than ", kMaxLine, " bytes"));
  }
  void finish() { end_line(); }

 private:
  void end_line() {
    ++number_;
    if (line_.find_first_not_of(" \t\r") != std::string::npos) {
      handler_.text(text_of_line());
      handler_.end_document();
    }
    line_.clear();
  }

  std::string text_of_line() const {
    nlohmann::json object;
    try {
      object = nlohmann::json::parse(line_);
    } catch (const nlohmann::json::exception& error) {
      fail(str("is not JSON: ", error.what()));
    }
    if (!object.is_object()) fail("is not a JSON object");
    const auto found = object.find(field_);
    if (found == object.end())
      fail(str("has no field \"", field_, "\"; `transmamba prepare --field NAME` reads another one"));
    if (!found->is_string()) fail(str("field \"", field_, "\" is not a string"));
    return found->get<std::string>();
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(str(path_.string(), ":", number_, ": ", what));
  }

  const std::filesystem::path& path_;
  const std::string& field_;
  const CorpusHandler& handler_;
  std::string line_;
  int64_t number_ = 0;
};

bool is_json_lines(const std::filesystem::path& path) {
  std::filesystem::path name = path.filename();
  if (name.extension() == ".gz") name = name.stem();
  return name.extension() == ".jsonl";
}

template <class Parser>
void read_blocks(const std::filesystem::path& path, Parser parser, const CorpusOptions& options,
                 const CorpusHandler& handler) {
  Source source(path);
  const auto total = static_cast<int64_t>(std::filesystem::file_size(path));
  std::vector<char> block(static_cast<size_t>(options.buffer_bytes));
  while (true) {
    const std::string_view bytes = source.read(block);
    if (bytes.empty()) break;
    if (handler.raw) handler.raw(bytes);
    parser.add(bytes);
    if (handler.progress && !handler.progress({std::min(source.offset(), total), total})) return;
  }
  parser.finish();
}
}  // namespace

void read_corpus(const std::filesystem::path& path, const CorpusOptions& options, const CorpusHandler& handler) {
  check_is_file(path);
  TM_CHECK(options.buffer_bytes > 0, "CorpusOptions::buffer_bytes must be positive, is ", options.buffer_bytes);
  if (is_json_lines(path)) {
    read_blocks(path, JsonParser(path, options, handler), options, handler);
  } else {
    read_blocks(path, PlainParser(options, handler), options, handler);
  }
}

CorpusSize measure_corpus(const std::filesystem::path& path, const CorpusOptions& options, int64_t enough) {
  check_is_file(path);
  if (options.separator.empty() && !is_json_lines(path) && !Source(path).compressed()) {
    return {1, static_cast<int64_t>(std::filesystem::file_size(path))};
  }
  CorpusSize size;
  int64_t in_document = 0;
  CorpusHandler handler;
  handler.text = [&](std::string_view piece) { in_document += static_cast<int64_t>(piece.size()); };
  handler.end_document = [&] {
    size.documents += in_document > 0 ? 1 : 0;
    size.text_bytes += in_document;
    in_document = 0;
  };
  handler.progress = [&](const CorpusPosition&) { return size.documents < enough; };
  read_corpus(path, options, handler);
  return size;
}

}  // namespace tmamba
