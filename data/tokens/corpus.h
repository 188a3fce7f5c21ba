// Streams documents from plain text or JSON-lines files, either of which may be gzipped. text_source.h says what is
// recognised and refused.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace tmamba {

enum class CorpusFormat {
  automatic,  // JSON lines if the text begins as a JSON object or the file name ends in .json, .jsonl or .ndjson
  text,       // plain text, of any bytes
  json_lines
};

struct CorpusOptions {
  CorpusFormat format = CorpusFormat::automatic;
  // Plain text: ends a document and is part of none. Empty: a file is one document.
  std::string separator;
  // JSON lines: every line is a document, whose text is this field (json_line.h).
  std::string json_field = "text";
  // JSON lines that cannot be read are skipped, up to max_errors of them; else the first one is an error.
  bool skip_errors = false;
  int64_t max_errors = 1000;
  int64_t buffer_bytes = int64_t{1} << 20;  // block size of reads; does not affect the result
  // Called for every block that is read; may throw, to stop. May be null.
  std::function<void()> interrupt = {};
};

// The records that could not be read, of all files.
struct SkippedRecords {
  int64_t count = 0;
  std::vector<std::string> first;  // "FILE:LINE: why" of the first ten

  // Throws UserError if `options` do not allow to skip this one.
  void add(const std::string& problem, const CorpusOptions& options);
};

struct CorpusPosition {
  int64_t bytes_done = 0;  // bytes of the file on the disk, compressed if it is
  int64_t bytes_total = 0;
  int64_t documents = 0;  // empty ones are not counted
};

struct CorpusHandler {
  // Receives the next part of the current document. A part may end anywhere, even inside a UTF-8 character.
  std::function<void(std::string_view text)> text = {};
  // Called at the end of a document, which may have been empty.
  std::function<void()> end_document = {};
  // Called after every block; returning false stops reading.
  std::function<bool(const CorpusPosition&)> progress = {};
  // Receives all bytes in order, after decompression.
  std::function<void(std::string_view block)> raw = {};
};

struct CorpusSummary {
  int64_t documents = 0;  // empty ones are not counted
  int64_t text_bytes = 0;
  std::vector<std::string> notes;  // sentences about what a user may not have expected
};

// Reads one file; functions of the handler may be null. Throws UserError naming the file (and the JSON line or the
// byte) if it is missing, a folder, empty, damaged, not text, or has a record that cannot be read and is not skipped.
CorpusSummary read_corpus(const std::filesystem::path& path, const CorpusOptions& options, const CorpusHandler& handler,
                          SkippedRecords& skipped);

// Counts the documents and text bytes of one file; stops at `enough` documents. A plain, uncompressed file without a
// separator is one document, of which only the beginning is read.
CorpusSummary measure_corpus(const std::filesystem::path& path, const CorpusOptions& options, int64_t enough);

}  // namespace tmamba
