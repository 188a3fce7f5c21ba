#include "data/tokens/corpus.h"

#include <algorithm>
#include <optional>

#include "data/tokens/json_line.h"
#include "data/tokens/text_source.h"
#include "kernels/base/check.h"

namespace tmamba {

namespace {
constexpr size_t kMaxLine = size_t{1} << 30;  // of JSON
constexpr size_t kFirstRecords = 10;

// Passes documents on and counts them.
class Documents {
 public:
  Documents(const CorpusHandler& handler, CorpusSummary& summary) : handler_(handler), summary_(summary) {}
  void text(std::string_view part) {
    if (part.empty()) return;
    empty_ = false;
    summary_.text_bytes += static_cast<int64_t>(part.size());
    if (handler_.text) handler_.text(part);
  }
  void end() {
    summary_.documents += empty_ ? 0 : 1;
    empty_ = true;
    if (handler_.end_document) handler_.end_document();
  }

 private:
  const CorpusHandler& handler_;
  CorpusSummary& summary_;
  bool empty_ = true;
};

// Splits plain text into documents at the separator.
class PlainParser {
 public:
  PlainParser(const std::string& separator, Documents& documents) : separator_(separator), documents_(documents) {}

  void add(std::string_view block) {
    count_nul(block);
    if (separator_.empty()) return documents_.text(block);
    rest_ += block;
    size_t begin = 0;
    for (size_t at; (at = rest_.find(separator_, begin)) != std::string::npos; begin = at + separator_.size()) {
      documents_.text(std::string_view(rest_).substr(begin, at - begin));
      documents_.end();
      separated_ = true;
    }
    // The last bytes may be the beginning of a separator.
    const size_t keep = std::min(rest_.size() - begin, separator_.size() - 1);
    documents_.text(std::string_view(rest_).substr(begin, rest_.size() - begin - keep));
    rest_.erase(0, rest_.size() - keep);
  }
  void finish(std::vector<std::string>& notes) {
    documents_.text(rest_);
    documents_.end();
    if (!separator_.empty() && !separated_) notes.push_back("the separator was not found: the file is one document");
    if (nul_ > 0) {
      notes.push_back(
          str("NUL bytes in its text: ", nul_, ", the first at byte ", first_nul_, "; is the file damaged?"));
    }
  }

 private:
  void count_nul(std::string_view block) {
    for (size_t at = block.find('\0'); at != std::string_view::npos; at = block.find('\0', at + 1)) {
      if (nul_++ == 0) first_nul_ = seen_ + static_cast<int64_t>(at);
    }
    seen_ += static_cast<int64_t>(block.size());
  }

  const std::string& separator_;
  Documents& documents_;
  std::string rest_;
  bool separated_ = false;
  int64_t seen_ = 0, nul_ = 0, first_nul_ = 0;
};

// Extracts the text from JSON lines.
class JsonParser {
 public:
  JsonParser(const std::string& name, const CorpusOptions& options, Documents& documents, SkippedRecords& skipped)
      : name_(name), options_(options), documents_(documents), skipped_(skipped) {}

  void add(std::string_view block) {
    for (size_t at; (at = block.find('\n')) != std::string_view::npos; block.remove_prefix(at + 1)) {
      append(block.substr(0, at));
      end_line();
    }
    append(block);
  }
  void finish(std::vector<std::string>&) { end_line(); }

 private:
  void append(std::string_view part) {
    too_long_ = too_long_ || line_.size() + part.size() > kMaxLine;
    if (too_long_) part = {}, line_.clear();
    line_ += part;
  }

  void end_line() {
    ++number_;
    std::optional<std::string_view> text;
    try {
      if (too_long_) throw UserError(str("is longer than ", kMaxLine, " bytes"));
      if (line_.find_first_not_of(" \t\r") != std::string::npos) {
        text = json_line_text(line_, options_.json_field, decoded_);
      }
    } catch (const UserError& error) {
      skipped_.add(str(name_, ":", number_, ": ", error.what(), number_ == 1 ? kFirstLine : ""), options_);
    }
    if (text) {
      documents_.text(*text);
      documents_.end();
    }
    line_.clear();
    too_long_ = false;
  }

  static constexpr const char* kFirstLine =
      " (the file is read as JSON lines, with one object in each line; `--format text` reads it as plain text)";

  const std::string& name_;
  const CorpusOptions& options_;
  Documents& documents_;
  SkippedRecords& skipped_;
  std::string line_, decoded_;
  bool too_long_ = false;
  int64_t number_ = 0;
};

// The position of the first character after white space from `at`.
size_t skip_space(std::string_view text, size_t at) {
  return std::min(text.find_first_not_of(" \t\r\n", at), text.size());
}

// Whether text[at, ...) begins as a JSON object with a member: {"name":
bool begins_json_object(std::string_view text, size_t at) {
  at = skip_space(text, at);
  if (!text.substr(at).starts_with('{')) return false;
  at = skip_space(text, at + 1);
  if (!text.substr(at).starts_with('"')) return false;
  for (++at; at < text.size() && text[at] != '"'; ++at) at += text[at] == '\\' ? 1 : 0;
  return at < text.size() && text.substr(skip_space(text, at + 1)).starts_with(':');
}

// Which parser reads the file; `notes` says so if its name does not.
bool is_json_lines(const TextSource& source, const CorpusOptions& options, std::vector<std::string>& notes) {
  if (options.format != CorpusFormat::automatic) return options.format == CorpusFormat::json_lines;
  const std::string_view head = source.head();
  const size_t begin = skip_space(head, 0);
  if (head.substr(begin).starts_with('[') && begins_json_object(head, begin + 1)) {
    throw UserError(
        str(source.name(),
            ": is one JSON array of objects; write one object in each line first: jq -c '.[]' FILE, or read "
            "it as plain text with `--format text`"));
  }
  const std::string suffix = source.suffix();
  if (suffix == ".jsonl" || suffix == ".ndjson" || suffix == ".json") return true;
  if (!begins_json_object(head, 0)) return false;
  notes.push_back("begins as a JSON object and is read as JSON lines; `--format text` reads it as plain text");
  return true;
}

template <class Parser>
void read_blocks(TextSource& source, Parser parser, const CorpusOptions& options, const CorpusHandler& handler,
                 CorpusSummary& summary) {
  while (true) {
    if (options.interrupt) options.interrupt();
    const std::string_view bytes = source.read(static_cast<size_t>(options.buffer_bytes));
    if (bytes.empty()) break;
    if (handler.raw) handler.raw(bytes);
    parser.add(bytes);
    const CorpusPosition at{source.offset(), source.file_bytes(), summary.documents};
    if (handler.progress && !handler.progress(at)) return;
  }
  parser.finish(summary.notes);
}

CorpusSummary read_source(TextSource& source, const CorpusOptions& options, const CorpusHandler& handler,
                          SkippedRecords& skipped) {
  TM_CHECK(options.buffer_bytes > 0, "CorpusOptions::buffer_bytes must be positive, is ", options.buffer_bytes);
  CorpusSummary summary;
  Documents documents(handler, summary);
  if (is_json_lines(source, options, summary.notes)) {
    read_blocks(source, JsonParser(source.name(), options, documents, skipped), options, handler, summary);
  } else {
    read_blocks(source, PlainParser(options.separator, documents), options, handler, summary);
  }
  for (std::string& note : summary.notes) note.insert(0, source.name() + ": ");
  return summary;
}

bool any_bytes(const CorpusOptions& options) { return options.format == CorpusFormat::text; }
}  // namespace

void SkippedRecords::add(const std::string& problem, const CorpusOptions& options) {
  if (!options.skip_errors) throw UserError(problem + " (`--on-error skip` skips such records)");
  ++count;
  if (first.size() < kFirstRecords) first.push_back(problem);
  if (count <= options.max_errors) return;
  std::string list;
  for (const std::string& one : first) list += "\n  " + one;
  throw UserError(str(problem, "\nMore than ", options.max_errors,
                      " records cannot be read (`--max-errors` sets this limit). The first ones:", list));
}

CorpusSummary read_corpus(const std::filesystem::path& path, const CorpusOptions& options, const CorpusHandler& handler,
                          SkippedRecords& skipped) {
  TextSource source(path, any_bytes(options));
  return read_source(source, options, handler, skipped);
}

CorpusSummary measure_corpus(const std::filesystem::path& path, const CorpusOptions& options, int64_t enough) {
  TextSource source(path, any_bytes(options));
  CorpusSummary summary;
  if (options.separator.empty() && !source.compressed() && !is_json_lines(source, options, summary.notes)) {
    summary.documents = 1, summary.text_bytes = source.file_bytes();
    return summary;
  }
  CorpusHandler handler;
  handler.progress = [&](const CorpusPosition& at) { return at.documents < enough; };
  SkippedRecords skipped;
  return read_source(source, options, handler, skipped);
}

}  // namespace tmamba
