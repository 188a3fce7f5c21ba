// prepare(): text files -> a folder that training reads: train.h5, valid.h5, the tokenizer's file and dataset.json.
// Text is read once, in pieces: inputs may be larger than memory.
//
// Held-out text. Where there are many documents (at least 16 / held_out), whole documents are held out: of each run of
// 1 / held_out consecutive documents one, drawn by the seed. Where there are few, every document is cut at newlines
// into blocks such that about 16 are held out, and blocks are drawn in the same way; a document then continues in the
// training file as a new document behind each gap, and a block held out is a document of the validation file. The
// choice depends on the text and the options alone, not on the tokenizer.
//
// Nothing of the output is visible before all of it is complete: files are written in a hidden folder inside `output`,
// fsynced, and renamed, dataset.json last.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace tmamba {

struct PrepareProgress {
  int64_t bytes_done = 0;  // of the input files as they lie on the disk
  int64_t bytes_total = 0;
  int64_t tokens = 0;  // written so far
};

struct PrepareOptions {
  std::vector<std::filesystem::path> inputs;  // see corpus.h
  std::filesystem::path output;               // a folder; made where it is missing
  std::string tokenizer = "bytes";            // or a tokenizer file
  double held_out = 0.01;                     // share of the text, in [0, 0.5]; 0 writes no valid.h5
  std::string separator;                      // see CorpusOptions
  std::string json_field = "text";
  uint64_t seed = 0;
  bool overwrite = false;                   // replace another data set in `output`
  int64_t buffer_bytes = int64_t{1} << 20;  // the result does not depend on it
  std::function<void(const PrepareProgress&)> progress;
};

struct PreparedFile {
  std::filesystem::path path;
  std::string split;  // "train" or "valid"
  int64_t tokens = 0;
  int64_t documents = 0;
  int64_t source_bytes = 0;
  std::string source_hash;  // SHA-256 of the text
  int64_t file_bytes = 0;
};

struct PrepareReport {
  bool already_done = false;  // the folder held this very data set; nothing was written
  std::vector<PreparedFile> files;
  std::string held_out_by;  // "document", "block" or "nothing"
  int64_t vocab_size = 0;
  double tokens_per_byte = 0;
  double seconds = 0;
};

// Throws UserError for what is wrong with inputs and options, Error where the output cannot be written; then `output`
// is as it was.
PrepareReport prepare(const PrepareOptions& options);

}  // namespace tmamba
