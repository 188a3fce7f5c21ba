#include "data/tokens/prepare.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <optional>
#include <set>

#include "data/io/fs.h"
#include "data/io/sha256.h"
#include "data/tokens/holdout.h"
#include "data/tokens/prepare_folder.h"
#include "data/tokens/token_file.h"
#include "data/tokens/tokenizer.h"
#include "kernels/base/clock.h"

namespace tmamba {

namespace {
constexpr const char* kTokenizerFile = "tokenizer.model";
constexpr int64_t kMinHeldOut = 16;  // documents to hold out; with fewer, blocks are held out
constexpr int64_t kMinBlockBytes = 256, kMaxBlockBytes = int64_t{1} << 20;

constexpr std::array<const char*, 3> kFormatNames{"auto", "text", "jsonl"};  // of CorpusFormat

enum Split : size_t { kTrain, kValid, kSplits };
constexpr std::array<const char*, kSplits> kSplitNames{"train", "valid"};

// Hashes, tokenizes and writes the text of one split.
class SplitWriter {
 public:
  SplitWriter(const std::filesystem::path& path, const Tokenizer& tokenizer, const std::string& tokenizer_file,
              const char* split, int64_t buffer_bytes)
      : tokenizer_(tokenizer),
        writer_(path, tokenizer, tokenizer_file, split),
        buffer_bytes_(static_cast<size_t>(buffer_bytes)),
        threshold_(buffer_bytes_) {}

  // A large text is encoded in parts of about buffer_bytes, so that its tokens do not take several times its memory.
  void text(std::string_view text) {
    sha_.add(text.data(), text.size());
    bytes_ += static_cast<int64_t>(text.size());
    for (; !text.empty(); text.remove_prefix(std::min(text.size(), buffer_bytes_))) {
      pending_ += text.substr(0, buffer_bytes_);
      if (pending_.size() < threshold_) continue;
      encode(tokenizer_.stable_prefix(pending_));
      threshold_ = pending_.size() + buffer_bytes_;
    }
  }
  void end_document() {
    encode(pending_.size());
    threshold_ = buffer_bytes_;
    writer_.end_document();
  }
  void close() {
    hash_ = sha_.hex();
    writer_.close(bytes_, hash_);
  }
  int64_t tokens() const { return writer_.tokens(); }
  int64_t documents() const { return writer_.documents(); }
  int64_t bytes() const { return bytes_; }
  const std::string& hash() const { return hash_; }

 private:
  void encode(size_t count) {
    writer_.append(tokenizer_.encode(std::string_view(pending_).substr(0, count)));
    pending_.erase(0, count);
  }

  const Tokenizer& tokenizer_;
  TokenFileWriter writer_;
  size_t buffer_bytes_;
  size_t threshold_;     // size of pending_ from which its stable prefix is encoded
  std::string pending_;  // text of the open document that is not encoded yet
  Sha256 sha_;
  int64_t bytes_ = 0;
  std::string hash_;
};

// Assigns documents, or blocks of them, to the splits.
class Splitter {
 public:
  // block_bytes 0: complete documents.
  Splitter(const HoldOut& hold_out, int64_t block_bytes, std::array<SplitWriter*, kSplits> writers)
      : hold_out_(hold_out), block_bytes_(block_bytes), writers_(writers) {}

  void text(std::string_view piece) {
    while (!piece.empty()) {
      if (!in_block_) begin_block();
      const size_t count = rest_of_block(piece);
      writers_[*target_]->text(piece.substr(0, count));
      filled_ += static_cast<int64_t>(count);
      piece.remove_prefix(count);
    }
  }
  void end_document() {
    if (target_) writers_[*target_]->end_document();
    target_.reset();
    in_block_ = false;
  }

 private:
  void begin_block() {
    const Split next = hold_out_.holds_out(index_++) ? kValid : kTrain;
    if (target_ && *target_ != next) writers_[*target_]->end_document();
    target_ = next;
    in_block_ = true;
    filled_ = 0;
  }

  // How many bytes of `piece` belong to the current block; clears in_block_ if the block ends there. A block ends after
  // the first newline at or after block_bytes, or between two characters at 2 * block_bytes.
  size_t rest_of_block(std::string_view piece) {
    if (block_bytes_ == 0) return piece.size();
    auto at = static_cast<size_t>(std::max<int64_t>(0, block_bytes_ - 1 - filled_));
    for (; at < piece.size(); ++at) {
      const bool continues_character = (static_cast<uint8_t>(piece[at]) & 0xC0) == 0x80;
      if (filled_ + static_cast<int64_t>(at) >= 2 * block_bytes_ && !continues_character) {
        in_block_ = false;
        return at;
      }
      if (piece[at] == '\n') {
        in_block_ = false;
        return at + 1;
      }
    }
    return piece.size();
  }

  const HoldOut& hold_out_;
  int64_t block_bytes_;
  std::array<SplitWriter*, kSplits> writers_;
  std::optional<Split> target_;  // of the open document
  bool in_block_ = false;
  int64_t filled_ = 0;  // bytes of the current block
  int64_t index_ = 0;   // of the next block
};

void check_options(const PrepareOptions& options) {
  if (options.inputs.empty()) throw UserError("no input files; give at least one");
  if (options.output.empty()) throw UserError("no output directory; give one");
  if (!(options.held_out >= 0 && options.held_out <= 0.5)) {
    throw UserError(str("held_out is ", options.held_out, "; it must be a fraction of the text between 0 and 0.5"));
  }
  std::set<std::filesystem::path> seen;
  for (const auto& input : options.inputs) {
    if (input == "-") {
      throw UserError("prepare reads its inputs twice, which standard input (-) does not allow; write it to a file");
    }
    std::error_code error;
    if (!seen.insert(std::filesystem::weakly_canonical(input, error)).second)
      throw UserError(input.string() + ": is given twice; remove one");
  }
}

// Size of the blocks that are held out; 0 for complete documents.
int64_t choose_block_bytes(const PrepareOptions& options) {
  CorpusSummary all;
  const double enough = options.held_out > 0 ? std::ceil(kMinHeldOut / options.held_out) : 0;
  // All inputs are measured, even after `enough` documents, so that a missing file fails now.
  for (const auto& input : options.inputs) {
    const auto wanted = static_cast<int64_t>(std::max(1.0, enough - static_cast<double>(all.documents)));
    const CorpusSummary size = measure_corpus(input, options.corpus, wanted);
    all.documents += size.documents;
    all.text_bytes += size.text_bytes;
  }
  if (static_cast<double>(all.documents) >= enough) return 0;
  return std::clamp(static_cast<int64_t>(static_cast<double>(all.text_bytes) * options.held_out / kMinHeldOut),
                    kMinBlockBytes, kMaxBlockBytes);
}

// The parts of dataset.json that are known before the text is read.
nlohmann::json describe_plan(const PrepareOptions& options, const Tokenizer& tokenizer) {
  nlohmann::json inputs = nlohmann::json::array();
  for (const auto& input : options.inputs) inputs.push_back(describe_input(input));
  const bool bytes = tokenizer.kind() == "bytes";
  return {{"format", "transmamba dataset"},
          {"version", 1},
          {"options",
           {{"held_out", options.held_out},
            {"format", kFormatNames[static_cast<size_t>(options.corpus.format)]},
            {"separator", options.corpus.separator},
            {"json_field", options.corpus.json_field},
            {"on_error", options.corpus.skip_errors ? "skip" : "stop"},
            {"seed", options.seed}}},
          {"tokenizer",
           {{"kind", tokenizer.kind()},
            {"file", bytes ? "bytes" : kTokenizerFile},
            {"hash", tokenizer.hash()},
            {"vocab_size", tokenizer.vocab_size()},
            {"document_end", tokenizer.document_end()}}},
          {"inputs", inputs}};
}

PrepareReport report_of(const nlohmann::json& dataset, const std::filesystem::path& output) {
  PrepareReport report;
  int64_t tokens = 0, bytes = 0;
  for (const auto& file : dataset.at("files")) {
    if (!file.contains("split")) continue;
    PreparedFile out;
    out.path = output / file.at("name").get<std::string>();
    out.split = file.at("split");
    out.tokens = file.at("tokens");
    out.documents = file.at("documents");
    out.source_bytes = file.at("source_bytes");
    out.source_hash = file.at("source_hash");
    out.file_bytes = file.at("bytes");
    tokens += out.tokens;
    bytes += out.source_bytes;
    report.files.push_back(std::move(out));
  }
  report.held_out_by = dataset.at("held_out_by");
  report.notes = dataset.value("notes", report.notes);
  const auto skipped = dataset.value("skipped", nlohmann::json::object());
  report.skipped.count = skipped.value("records", int64_t{0});
  report.skipped.first = skipped.value("first", report.skipped.first);
  report.vocab_size = dataset.at("tokenizer").at("vocab_size");
  report.tokens_per_byte = bytes > 0 ? static_cast<double>(tokens) / static_cast<double>(bytes) : 0;
  return report;
}

// Reads all inputs into the splitter; adds the hashes of the inputs and what was unusual in them to `dataset`.
void read_inputs(const PrepareOptions& options, Splitter& splitter, const std::function<int64_t()>& tokens,
                 nlohmann::json& dataset) {
  PrepareProgress progress;
  for (const auto& input : dataset["inputs"]) progress.bytes_total += input["bytes"].get<int64_t>();
  int64_t files_done = 0;
  SkippedRecords skipped;
  std::vector<std::string> notes;
  for (size_t i = 0; i < options.inputs.size(); ++i) {
    Sha256 content;
    CorpusHandler handler;
    handler.text = [&](std::string_view piece) { splitter.text(piece); };
    handler.end_document = [&] { splitter.end_document(); };
    handler.raw = [&](std::string_view block) { content.add(block.data(), block.size()); };
    handler.progress = [&](const CorpusPosition& at) {
      progress.bytes_done = files_done + at.bytes_done;
      progress.tokens = tokens();
      if (options.progress) options.progress(progress);
      return true;
    };
    const CorpusSummary read = read_corpus(options.inputs[i], options.corpus, handler, skipped);
    notes.insert(notes.end(), read.notes.begin(), read.notes.end());
    if (read.documents == 0) notes.push_back(options.inputs[i].string() + ": has no documents that are not empty");
    if (describe_input(options.inputs[i]) != dataset["inputs"][i]) {
      throw UserError(options.inputs[i].string() + ": changed while it was read; run prepare again");
    }
    files_done += dataset["inputs"][i]["bytes"].get<int64_t>();
    dataset["inputs"][i]["sha256"] = content.hex();
  }
  dataset["notes"] = notes;
  dataset["skipped"] = {{"records", skipped.count}, {"first", skipped.first}};
}

void check_splits(const PrepareOptions& options, const SplitWriter& train, const SplitWriter* valid) {
  const int64_t bytes = train.bytes() + (valid == nullptr ? 0 : valid->bytes());
  if (bytes == 0) throw UserError(options.inputs[0].string() + ": the inputs contain no text");
  if (train.bytes() == 0 || (valid != nullptr && valid->bytes() == 0)) {
    throw UserError(str("the text of ", bytes, " bytes is too small to hold out ", options.held_out,
                        " of it; use more text, a larger fraction or 0"));
  }
}

nlohmann::json describe_split(const std::filesystem::path& path, const char* split, const SplitWriter& writer) {
  File::open_update(path).sync();
  return {{"name", path.filename().string()},
          {"split", split},
          {"bytes", std::filesystem::file_size(path)},
          {"tokens", writer.tokens()},
          {"documents", writer.documents()},
          {"source_bytes", writer.bytes()},
          {"source_hash", writer.hash()}};
}
}  // namespace

PrepareReport prepare(const PrepareOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  check_options(options);
  const auto tokenizer = load_tokenizer(options.tokenizer);
  const int64_t block_bytes = choose_block_bytes(options);
  nlohmann::json dataset = describe_plan(options, *tokenizer);
  if (const auto finished = find_finished(options, dataset); !finished.is_null()) {
    try {
      PrepareReport report = report_of(finished, options.output);
      report.already_done = true;
      return report;
    } catch (const nlohmann::json::exception&) {
      // Its dataset.json is damaged: the data set is made again.
    }
  }

  WorkFolder work(options.output);
  const std::string tokenizer_file = dataset["tokenizer"]["file"];
  std::vector<std::string> names{"train.h5"}, obsolete{kTokenizerFile};
  std::array<std::optional<SplitWriter>, kSplits> writers;
  writers[kTrain].emplace(work / "train.h5", *tokenizer, tokenizer_file, kSplitNames[kTrain],
                          options.corpus.buffer_bytes);
  if (options.held_out > 0) {
    names.push_back("valid.h5");
    writers[kValid].emplace(work / "valid.h5", *tokenizer, tokenizer_file, kSplitNames[kValid],
                            options.corpus.buffer_bytes);
  } else {
    obsolete.push_back("valid.h5");
  }
  SplitWriter* valid = writers[kValid] ? &*writers[kValid] : nullptr;
  const HoldOut hold_out(options.held_out, options.seed);
  Splitter splitter(hold_out, block_bytes, {&*writers[kTrain], valid});
  read_inputs(
      options, splitter, [&] { return writers[kTrain]->tokens() + (valid == nullptr ? 0 : valid->tokens()); }, dataset);
  check_splits(options, *writers[kTrain], valid);

  dataset["held_out_by"] = options.held_out == 0 ? "nothing" : block_bytes == 0 ? "document" : "block";
  dataset["files"] = nlohmann::json::array();
  for (size_t split = 0; split < kSplits; ++split) {
    if (!writers[split]) continue;
    writers[split]->close();
    dataset["files"].push_back(describe_split(work / names[split], kSplitNames[split], *writers[split]));
  }
  if (tokenizer_file == kTokenizerFile) {
    tokenizer->save(work / kTokenizerFile);
    dataset["files"].push_back(
        {{"name", kTokenizerFile}, {"bytes", std::filesystem::file_size(work / kTokenizerFile)}});
    names.push_back(kTokenizerFile);
    obsolete.erase(obsolete.begin());
  }
  write_text_durably(work / kDatasetFile, dataset.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  work.publish(names, obsolete);
  PrepareReport report = report_of(dataset, options.output);
  report.seconds = seconds_since(start);
  return report;
}

}  // namespace tmamba
