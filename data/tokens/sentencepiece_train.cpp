// Trains a SentencePiece model on a random sample of lines.
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "data/io/fs.h"
#include "data/tokens/corpus.h"
#include "data/tokens/sentencepiece_tokenizer.h"
#include "data/tokens/utf8.h"
#include "kernels/base/rng.h"

namespace tmamba {

namespace {
constexpr size_t kMaxLine = 4096;       // bytes; longer lines are split
constexpr int64_t kReserved = 256 + 4;  // tokens: bytes, unknown, document end, newline, tab
constexpr double kMinCoverage = 0.98;   // the smallest character_coverage that SentencePiece accepts

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

// Whether SentencePiece must not see the character text[at, at + length): invalid UTF-8 (length 0), NUL and U+2581,
// which encoding never passes to it, and U+2585, its symbol for unknown characters, for which it drops the whole line.
bool is_foreign(std::string_view text, size_t at, size_t length) {
  const std::string_view character = text.substr(at, length);
  return length == 0 || text[at] == '\0' || character == "\xE2\x96\x81" || character == "\xE2\x96\x85";
}

// Calls part(text) for the longest parts of `line` without characters that drop(at, length) is true for; its length is
// 0 for a byte that is not UTF-8.
template <class Drop, class Part>
void for_each_part(std::string_view line, Drop drop, Part part) {
  size_t start = 0;
  for (size_t at = 0; at < line.size();) {
    const size_t length = utf8_length(line, at);
    const bool dropped = drop(at, length);
    const size_t next = at + std::max<size_t>(length, 1);
    if (dropped || next - start > kMaxLine) {
      part(line.substr(start, at - start));
      start = dropped ? next : at;
    }
    at = next;
  }
  part(line.substr(start));
}

// Splits text into lines, which foreign characters end too.
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
    for_each_part(
        line, [&](size_t at, size_t length) { return is_foreign(line, at, length); },
        [&](std::string_view part) { sample_.add(part); });
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
                                      const SentencePieceOptions& options, SkippedRecords& skipped) {
  LineSample sample(options.max_training_bytes, options.seed);
  LineSplitter splitter(sample);
  const CorpusHandler handler{.text = [&](std::string_view piece) { splitter.add(piece); },
                              .end_document = [&] { splitter.finish(); }};
  for (const auto& input : inputs) read_corpus(input, options.corpus, handler, skipped);
  return sample.take();
}

struct Character {
  int64_t count;
  std::string text;
  auto operator<=>(const Character&) const = default;
};

// The characters of the lines, the most frequent first.
std::vector<Character> count_characters(const std::vector<std::string>& lines) {
  std::unordered_map<std::string, int64_t> counts;
  for (const std::string& line : lines) {
    for (size_t at = 0, length; (length = utf8_length(line, at)) > 0; at += length) ++counts[line.substr(at, length)];
  }
  std::vector<Character> characters;
  for (const auto& [text, count] : counts) characters.push_back({count, text});
  std::sort(characters.rbegin(), characters.rend());
  return characters;
}

// SentencePiece's character_coverage: the fraction of the text whose characters get a token; the others are encoded as
// bytes. It is 0.9999, or less if so many different characters would be more than `most`. 0: SentencePiece does not
// accept it.
double character_coverage(const std::vector<Character>& characters, int64_t most) {
  int64_t covered = 0, total = 0, tabs = 0, index = 0;
  for (const Character& character : characters) {
    total += character.count;
    if (index++ < most) covered += character.count;
    if (character.text == "\t") tabs = character.count;
  }
  // The margin covers that SentencePiece compares in single precision. Of a text of tabs alone, which have a token
  // already, no character would be left for it.
  const double coverage = std::min(0.9999, static_cast<double>(covered) / static_cast<double>(total) - 1e-6);
  return coverage >= kMinCoverage && 2 * tabs < total ? coverage : 0;
}

// The parts of the lines that consist of the `most` most frequent characters.
std::vector<std::string> keep_characters(const std::vector<std::string>& lines,
                                         const std::vector<Character>& characters, int64_t most) {
  std::unordered_set<std::string_view> kept;
  for (const Character& character : characters) {
    if (static_cast<int64_t>(kept.size()) < most && character.text != "\t") kept.insert(character.text);
  }
  std::vector<std::string> parts;
  for (const std::string& line : lines) {
    for_each_part(
        line, [&](size_t at, size_t length) { return !kept.contains(std::string_view(line).substr(at, length)); },
        [&](std::string_view part) {
          if (!part.empty()) parts.emplace_back(part);
        });
  }
  return parts;
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
  constexpr int64_t kMaxBytes = int64_t{1} << 40;
  if (options.max_training_bytes < 1 || options.max_training_bytes > kMaxBytes) {
    throw UserError(str("training on at most ", options.max_training_bytes,
                        " bytes of text; the limit must be between 1 and ", kMaxBytes));
  }
}

// Trains a model of options.vocab_size tokens, or of fewer if the text does not yield as many. Returns their number.
int64_t train(const std::vector<std::string>& lines, double coverage, const SentencePieceOptions& options,
              std::string& model) {
  std::unordered_map<std::string, std::string> arguments{
      {"model_type", options.model_type},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"split_by_whitespace", "true"},
      {"allow_whitespace_only_pieces", "true"},
      {"byte_fallback", "true"},
      {"character_coverage", std::to_string(coverage)},
      {"user_defined_symbols", "\n,\t"},
      {"unk_id", "0"},
      {"bos_id", "-1"},
      {"eos_id", "1"},
      {"pad_id", "-1"},
      {"max_sentence_length", std::to_string(2 * kMaxLine)},
      // Fixed, because the order of floating-point sums depends on it.
      {"num_threads", "4"},
      {"minloglevel", options.verbose ? "0" : "3"}};
  // SentencePiece counts characters in 32 bits unless it is told otherwise.
  if (options.max_training_bytes > int64_t{1} << 30) arguments["train_extremely_large_corpus"] = "true";
  for (const bool exact : {true, false}) {
    if (!exact) arguments["hard_vocab_limit"] = "false";
    Lines iterator(lines);
    if (sentencepiece::SentencePieceTrainer::Train(arguments, &iterator, &model).ok()) {
      return SentencePieceTokenizer(model, "the trained model").vocab_size();
    }
  }
  throw UserError(str("cannot train a tokenizer of ", options.vocab_size,
                      " tokens on this text; try another --vocab or --type, or --verbose to see SentencePiece's log"));
}
}  // namespace

SkippedRecords train_sentencepiece(const std::vector<std::filesystem::path>& inputs,
                                   const std::filesystem::path& output, const SentencePieceOptions& options) {
  check_options(inputs, options);
  SkippedRecords skipped;
  const std::vector<std::string> lines = sample_lines(inputs, options, skipped);
  const std::vector<Character> characters = count_characters(lines);
  if (characters.empty() || (characters.size() == 1 && characters[0].text == "\t")) {
    throw UserError(inputs[0].string() +
                    ": contains no text to train a tokenizer on, only tabs, line ends or bytes that are not UTF-8");
  }
  // Characters fill at most half of the vocabulary, or what words do not.
  const int64_t most = std::max<int64_t>(1, (options.vocab_size - kReserved) / 2);
  std::string model;
  const double coverage = character_coverage(characters, most);
  int64_t tokens = coverage > 0 ? train(lines, coverage, options, model)
                                : train(keep_characters(lines, characters, most), 1, options, model);
  if (tokens < options.vocab_size) {
    tokens = train(keep_characters(lines, characters, most + options.vocab_size - tokens), 1, options, model);
  }
  if (tokens < options.vocab_size) {
    int64_t bytes = 0;
    for (const std::string& line : lines) bytes += static_cast<int64_t>(line.size());
    throw UserError(str("cannot train a tokenizer of ", options.vocab_size, " tokens on ", bytes,
                        " bytes of text, whose characters and words are enough for ", tokens, "; use --vocab ", tokens,
                        " or less, or give more text"));
  }
  replace_text_durably(std::filesystem::absolute(output), model, random_nonce());
  return skipped;
}

}  // namespace tmamba
