// prepare() turns text files into a data folder for training: train.h5, valid.h5, the tokenizer's file and
// dataset.json. It streams the text, so inputs may be larger than memory.
//
// Held-out text. If there are at least 16 / held_out documents, complete documents are held out: one random document of
// each 1 / held_out consecutive ones. Otherwise every document is split at newlines into blocks, sized so that about 16
// are held out, and blocks are selected in the same way. Each held-out block becomes a document of the validation file,
// and the text after it becomes a new document of the training file. The selection depends on the text and the options,
// not on the tokenizer.
//
// Files are written to a hidden folder inside `output`, fsynced and then renamed, dataset.json last. A data folder
// without dataset.json is incomplete.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/tokens/corpus.h"

namespace tmamba {

struct PrepareProgress {
  int64_t bytes_done = 0;  // of the input files on the disk, compressed if they are
  int64_t bytes_total = 0;
  int64_t tokens = 0;  // written so far
};

struct PrepareOptions {
  std::vector<std::filesystem::path> inputs;  // files, which are read more than once
  std::filesystem::path output;               // a folder; created if missing
  std::string tokenizer = "bytes";            // or a tokenizer file
  double held_out = 0.01;                     // fraction of the text, in [0, 0.5]; 0 writes no valid.h5
  CorpusOptions corpus;                       // how the inputs are read
  uint64_t seed = 0;
  bool overwrite = false;  // replace a different data set in `output`
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
  bool already_done = false;  // `output` already contains this data set; nothing was written
  std::vector<PreparedFile> files;
  std::string held_out_by;  // "document", "block" or "nothing"
  int64_t vocab_size = 0;
  double tokens_per_byte = 0;
  double seconds = 0;
  SkippedRecords skipped;
  std::vector<std::string> notes;  // of the inputs; see CorpusSummary
};

// Throws UserError for invalid inputs or options, Error if the output cannot be written, and what corpus.interrupt
// throws; `output` is then unchanged.
PrepareReport prepare(const PrepareOptions& options);

}  // namespace tmamba
