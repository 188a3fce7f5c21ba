// Trains a SentencePiece model on a random sample of lines.
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <numeric>
#include <queue>
#include <unordered_map>

#include "data/io/fs.h"
#include "data/tokens/corpus.h"
#include "data/tokens/sentencepiece_tokenizer.h"
#include "data/tokens/utf8.h"
#include "kernels/base/rng.h"

namespace tmamba {

namespace {
constexpr size_t kMaxLine = 4096;       // bytes; longer lines are split
constexpr int64_t kReserved = 256 + 4;  // tokens: bytes, unknown, document end, newline, tab

// A uniform random sample of lines of at most max_bytes: every line gets a random key, and those with the smallest keys
// stay.
class LineSample {
 public:
  LineSample(int64_t max_bytes, uint64_t seed)
      : max_bytes_(max_bytes), random_(seed, stream_id("data/tokenizer sample")) {}

  void add(std::string_view line) {
    const int64_t index = lines_++;
    if (line.empty()) return;
    const auto words = random_.words(static_cast<uint64_t>(index));
    kept_.push({uint64_t{words[0]} << 32 | words[1], index, std::string(line)});
    bytes_ += static_cast<int64_t>(line.size());
    while (bytes_ > max_bytes_ && kept_.size() > 1) {
      bytes_ -= static_cast<int64_t>(kept_.top().text.size());
      kept_.pop();
    }
  }

  // Returns the lines in the order of the text and empties the sample.
  std::vector<std::string> take() {
    std::vector<Line> lines;
    for (; !kept_.empty(); kept_.pop()) lines.push_back(kept_.top());
    std::sort(lines.begin(), lines.end(), [](const Line& a, const Line& b) { return a.index < b.index; });
    std::vector<std::string> texts;
    for (Line& line : lines) texts.push_back(std::move(line.text));
    return texts;
  }

 private:
  struct Line {
    uint64_t key;
    int64_t index;
    std::string text;
    bool operator<(const Line& other) const { return key != other.key ? key < other.key : index < other.index; }
  };
  int64_t max_bytes_;
  Philox random_;
  int64_t lines_ = 0;
  int64_t bytes_ = 0;
  std::priority_queue<Line> kept_;
};

// Splits text into lines. Invalid UTF-8, NUL and U+2581 end a line too and are dropped, because encoding never passes
// them to SentencePiece.
class LineSplitter {
 public:
  explicit LineSplitter(LineSample& sample) : sample_(sample) {}

  void add(std::string_view piece) {
    rest_ += piece;
    size_t begin = 0;
    for (size_t at; (at = rest_.find('\n', begin)) != std::string::npos; begin = at + 1) add_line(begin, at);
    // A long line is split at spaces, where SentencePiece's words begin.
    for (size_t at; rest_.size() - begin > kMaxLine && (at = rest_.rfind(' ', begin + kMaxLine)) != std::string::npos &&
                    at > begin;
         begin = at) {
      add_line(begin, at);
    }
    if (rest_.size() - begin > 2 * kMaxLine) {
      add_line(begin, rest_.size());
      begin = rest_.size();
    }
    rest_.erase(0, begin);
  }
  void finish() {
    add_line(0, rest_.size());
    rest_.clear();
  }

 private:
  void add_line(size_t begin, size_t end) {
    const std::string_view line = std::string_view(rest_).substr(begin, end - begin);
    size_t start = 0;
    for (size_t at = 0; at < line.size();) {
      const size_t length = utf8_length(line, at);
      const bool dropped = length == 0 || line[at] == '\0' || line.substr(at, length) == "\xE2\x96\x81";
      const size_t next = at + std::max<size_t>(length, 1);
      if (dropped || next - start > kMaxLine) {
        sample_.add(line.substr(start, at - start));
        start = dropped ? next : at;
      }
      at = next;
    }
    sample_.add(line.substr(start));
  }

  LineSample& sample_;
  std::string rest_;
};

class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return at_ >= lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  size_t at_ = 0;
};

std::vector<std::string> sample_lines(const std::vector<std::filesystem::path>& inputs,
                                      const SentencePieceOptions& options) {
  LineSample sample(options.max_training_bytes, options.seed);
  LineSplitter splitter(sample);
  const CorpusHandler handler{.text = [&](std::string_view piece) { splitter.add(piece); },
                              .end_document = [&] { splitter.finish(); },
                              .progress = {},
                              .raw = {}};
  CorpusOptions corpus;
  corpus.json_field = options.json_field;
  for (const auto& input : inputs) read_corpus(input, corpus, handler);
  return sample.take();
}

// SentencePiece's character_coverage: the fraction of characters in the text that get a piece; the others are encoded
// as bytes. It is 0.9999, or less if so many different characters would fill more than half of the vocabulary.
double character_coverage(const std::vector<std::string>& lines, int64_t vocab_size) {
  std::unordered_map<std::string_view, int64_t> counts;
  int64_t total = 0;
  for (const std::string& line : lines) {
    for (size_t at = 0, length; (length = utf8_length(line, at)) > 0; at += length) {
      ++counts[std::string_view(line).substr(at, length)];
      ++total;
    }
  }
  std::vector<int64_t> sorted;
  for (const auto& [character, count] : counts) sorted.push_back(count);
  std::sort(sorted.rbegin(), sorted.rend());
  const auto most = std::min(sorted.size(), static_cast<size_t>(std::max<int64_t>(1, (vocab_size - kReserved) / 2)));
  const int64_t covered = std::accumulate(sorted.begin(), sorted.begin() + static_cast<int64_t>(most), int64_t{0});
  // The margin covers that SentencePiece compares in single precision.
  return std::min(0.9999, static_cast<double>(covered) / static_cast<double>(total) - 1e-6);
}

void check_options(const std::vector<std::filesystem::path>& inputs, const SentencePieceOptions& options) {
  if (inputs.empty()) throw UserError("no text to train a tokenizer on; give at least one file");
  if (options.model_type != "bpe" && options.model_type != "unigram") {
    throw UserError("unknown model type \"" + options.model_type + "\"; valid: bpe, unigram");
  }
  constexpr int64_t kMinVocab = kReserved + 1;
  if (options.vocab_size < kMinVocab || options.vocab_size > (int64_t{1} << 20)) {
    throw UserError(
        str("a vocabulary of ", options.vocab_size, " tokens; it must have between ", kMinVocab, " and ", 1 << 20));
  }
  if (options.max_training_bytes < 1) {
    throw UserError(str("max_training_bytes is ", options.max_training_bytes, "; it must be positive"));
  }
}
}  // namespace

void train_sentencepiece(const std::vector<std::filesystem::path>& inputs, const std::filesystem::path& output,
                         const SentencePieceOptions& options) {
  check_options(inputs, options);
  const std::vector<std::string> lines = sample_lines(inputs, options);
  if (lines.empty()) throw UserError(inputs[0].string() + ": contains no text to train a tokenizer on");
  Lines iterator(lines);
  std::string model;
  // The number of threads is fixed because the order of floating-point sums depends on it.
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      {{"model_type", options.model_type},
       {"vocab_size", std::to_string(options.vocab_size)},
       {"normalization_rule_name", "identity"},
       {"add_dummy_prefix", "false"},
       {"remove_extra_whitespaces", "false"},
       {"split_by_whitespace", "true"},
       {"allow_whitespace_only_pieces", "true"},
       {"byte_fallback", "true"},
       {"character_coverage", std::to_string(character_coverage(lines, options.vocab_size))},
       {"user_defined_symbols", "\n,\t"},
       {"unk_id", "0"},
       {"bos_id", "-1"},
       {"eos_id", "1"},
       {"pad_id", "-1"},
       {"max_sentence_length", std::to_string(2 * kMaxLine)},
       {"num_threads", "4"},
       {"minloglevel", options.verbose ? "0" : "2"}},
      &iterator, &model);
  if (!status.ok()) {
    throw UserError(str("cannot train a tokenizer of ", options.vocab_size, " tokens on ", lines.size(),
                        " lines of text: ", status.ToString()));
  }
  const SentencePieceTokenizer check(model, "the trained model");
  check.save(output);
}

}  // namespace tmamba
