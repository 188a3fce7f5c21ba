// Reading text: files of plain text or JSON lines, either of them gzipped (recognised by its first bytes, so .gz, .dz
// and others work), piece by piece, in documents.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace tmamba {

struct CorpusOptions {
  // Plain text: a document ends wherever this string stands, which belongs to no document. Empty: a file is a document.
  std::string separator;
  // JSON lines (file names ending in .jsonl or .jsonl.gz): every line is a document, the string in this field.
  std::string json_field = "text";
  int64_t buffer_bytes = int64_t{1} << 20;  // read at once
};

// Where a reader stands in a file as it lies on the disk (compressed or not).
struct CorpusPosition {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
};

struct CorpusHandler {
  // The next piece of the current document. Pieces may be cut anywhere, in the middle of a character too.
  std::function<void(std::string_view piece)> text;
  // The document is complete. It may have been empty.
  std::function<void()> end_document;
  // Called after every block read; false stops reading. May be empty.
  std::function<bool(const CorpusPosition&)> progress;
  // All bytes read, after decompression, in order. May be empty.
  std::function<void(std::string_view block)> raw;
};

// Reads one file. Throws UserError naming the file (and the line of JSON) where it is missing, a folder, empty,
// damaged, or lacks the field.
void read_corpus(const std::filesystem::path& path, const CorpusOptions& options, const CorpusHandler& handler);

struct CorpusSize {
  int64_t documents = 0;  // that hold text
  int64_t text_bytes = 0;
};

// Counts documents and bytes of text in one file; stops when there are `enough` documents. A plain file without a
// separator is not read.
CorpusSize measure_corpus(const std::filesystem::path& path, const CorpusOptions& options, int64_t enough);

}  // namespace tmamba
