// Streams documents from plain text or JSON-lines files. Either may be gzipped, which is recognised by the first bytes
// and not by the file name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace tmamba {

struct CorpusOptions {
  // Plain text: ends a document and is part of none. Empty: a file is one document.
  std::string separator;
  // JSON lines (file names ending in .jsonl or .jsonl.gz): every line is a document, whose text is this field.
  std::string json_field = "text";
  int64_t buffer_bytes = int64_t{1} << 20;  // block size of reads
};

// Bytes of the file on the disk, compressed if it is.
struct CorpusPosition {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
};

struct CorpusHandler {
  // Receives the next part of the current document. A part may end anywhere, even inside a UTF-8 character.
  std::function<void(std::string_view text)> text;
  // Called at the end of a document, which may have been empty.
  std::function<void()> end_document;
  // Called after every block; returning false stops reading. May be null.
  std::function<bool(const CorpusPosition&)> progress;
  // Receives all bytes in order, after decompression. May be null.
  std::function<void(std::string_view block)> raw;
};

// Reads one file. Throws UserError naming the file (and the JSON line) if it is missing, a folder, empty, damaged, or
// lacks the field.
void read_corpus(const std::filesystem::path& path, const CorpusOptions& options, const CorpusHandler& handler);

struct CorpusSize {
  int64_t documents = 0;  // empty ones are not counted
  int64_t text_bytes = 0;
};

// Counts the documents and text bytes of one file; stops at `enough` documents. A plain, uncompressed file without a
// separator is one document and is not read.
CorpusSize measure_corpus(const std::filesystem::path& path, const CorpusOptions& options, int64_t enough);

}  // namespace tmamba
