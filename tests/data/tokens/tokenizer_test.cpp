#include "data/tokens/tokenizer.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "data/io/sha256.h"
#include "tests/data/text.h"

namespace tmamba {
namespace {
using testing_files::append_utf8;
using testing_files::licence;
using testing_files::random_bytes;
using testing_files::random_unicode;
using testing_files::read_file;
using testing_files::TempFolder;
using testing_files::write_file;

void expect_lossless(const Tokenizer& tokenizer, const std::string& text, const std::string& what) {
  const auto tokens = tokenizer.encode(text);
  ASSERT_EQ(tokenizer.decode(tokens), text) << what;
  int64_t bytes = 0;
  for (int32_t token : tokens) {
    ASSERT_GE(token, 0) << what;
    ASSERT_LT(token, tokenizer.vocab_size()) << what;
    ASSERT_NE(token, tokenizer.document_end()) << what;
    bytes += tokenizer.bytes_of(token);
  }
  EXPECT_EQ(bytes, static_cast<int64_t>(text.size())) << what;
}

// Text cut at stable prefixes gives the tokens of the whole.
void expect_stable_cuts(const Tokenizer& tokenizer, const std::string& text, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> pieces;
  std::string pending;
  for (size_t at = 0; at < text.size();) {
    const size_t count = std::min<size_t>(text.size() - at, 1 + random() % 40);
    pending += text.substr(at, count);
    at += count;
    const size_t stable = tokenizer.stable_prefix(pending);
    ASSERT_LE(stable, pending.size());
    const auto tokens = tokenizer.encode(std::string_view(pending).substr(0, stable));
    pieces.insert(pieces.end(), tokens.begin(), tokens.end());
    pending.erase(0, stable);
  }
  const auto rest = tokenizer.encode(pending);
  pieces.insert(pieces.end(), rest.begin(), rest.end());
  EXPECT_EQ(pieces, tokenizer.encode(text)) << "seed " << seed;
}

std::string hard_text() {
  return "  two  spaces\n\n\n\tindented\t\tby tabs \r\n   \n"
         "<unk> <s> </s> <0x41> <0x0A> \xE2\x96\x81under\xE2\x96\x81 \xE2\x96\x81\n"
         "caf\xC3\xA9 cafe\xCC\x81 \xEF\xAC\x81 \xEF\xBC\xA1 \xC2\xA0 \xF0\x9F\x98\x80 " +
         std::string(5000, 'x') + std::string(3000, ' ') + std::string("nul\0nul", 7) + "cut \xC3";
}

TEST(Bytes, KnownIds) {
  const auto tokenizer = load_tokenizer("bytes");
  EXPECT_EQ(tokenizer->encode("Hi\n\xFF"), (std::vector<int32_t>{72, 105, 10, 255}));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{72, 105, 256, 10, 255}), "Hi\n\xFF");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->document_end(), 256);
  EXPECT_EQ(tokenizer->bytes_of(256), 0);
  EXPECT_MESSAGE(UserError, "token 257 is out of the vocabulary", tokenizer->decode(std::vector<int32_t>{257}));
  EXPECT_MESSAGE(UserError, "token -1 is out of the vocabulary", tokenizer->decode(std::vector<int32_t>{-1}));
}

TEST(Bytes, Lossless) {
  const auto tokenizer = load_tokenizer("bytes");
  expect_lossless(*tokenizer, licence(), "licence");
  expect_lossless(*tokenizer, hard_text(), "hard text");
  for (uint64_t seed = 0; seed < 20; ++seed) expect_lossless(*tokenizer, random_bytes(1000, seed), str("seed ", seed));
  expect_stable_cuts(*tokenizer, random_bytes(1000, 5), 5);
}

TEST(Bytes, SavesAndLoads) {
  const TempFolder folder;
  const auto tokenizer = load_tokenizer("bytes");
  tokenizer->save(folder / "t.json");
  const auto back = load_tokenizer((folder / "t.json").string());
  EXPECT_EQ(back->kind(), "bytes");
  EXPECT_EQ(back->hash(), tokenizer->hash());
}

// Training takes a moment, so the models are shared.
class SentencePiece : public ::testing::TestWithParam<std::string> {
 protected:
  static const std::filesystem::path& model(const std::string& type) {
    static const TempFolder folder;
    static std::map<std::string, std::filesystem::path> models;
    auto& path = models[type];
    if (path.empty()) {
      path = folder / (type + ".model");
      const auto text = write_file(folder / (type + ".txt"), licence());
      train_sentencepiece({text}, path, {.vocab_size = 500, .model_type = type});
    }
    return path;
  }
  std::unique_ptr<Tokenizer> tokenizer_ = load_tokenizer(model(GetParam()).string());
};

TEST_P(SentencePiece, LosslessOnRealText) {
  expect_lossless(*tokenizer_, licence(), "licence");
  expect_lossless(*tokenizer_, licence(), "licence, remembered");
  EXPECT_LT(tokenizer_->encode(licence()).size() * 2, licence().size());  // it does compress
}

TEST_P(SentencePiece, LosslessOnHardText) {
  expect_lossless(*tokenizer_, "", "empty");
  expect_lossless(*tokenizer_, hard_text(), "hard text");
  for (int byte = 0; byte < 256; ++byte)
    expect_lossless(*tokenizer_, std::string(1, static_cast<char>(byte)), str("byte ", byte));
}

TEST_P(SentencePiece, LosslessOnRandomUnicode) {
  for (uint64_t seed = 0; seed < 30; ++seed)
    expect_lossless(*tokenizer_, random_unicode(2000, seed), str("seed ", seed));
}

TEST_P(SentencePiece, LosslessOnRandomBytes) {
  for (uint64_t seed = 0; seed < 30; ++seed) expect_lossless(*tokenizer_, random_bytes(2000, seed), str("seed ", seed));
}

TEST_P(SentencePiece, NewlinesAndTabsAreTokens) {
  const auto one = tokenizer_->encode("\n"), tab = tokenizer_->encode("\t");
  ASSERT_EQ(one.size(), 1u);
  ASSERT_EQ(tab.size(), 1u);
  EXPECT_EQ(tokenizer_->encode("\n\n\t"), (std::vector<int32_t>{one[0], one[0], tab[0]}));
  const auto line = tokenizer_->encode("work\n");
  EXPECT_EQ(line.back(), one[0]);
}

TEST_P(SentencePiece, StableSplits) {
  expect_stable_cuts(*tokenizer_, licence(), 1);
  expect_stable_cuts(*tokenizer_, hard_text(), 2);
  for (uint64_t seed = 10; seed < 20; ++seed) {
    expect_stable_cuts(*tokenizer_, random_unicode(1000, seed), seed);
    expect_stable_cuts(*tokenizer_, random_bytes(3000, seed), seed);
  }
  // What is left over is short, or memory would grow with the line.
  EXPECT_GE(tokenizer_->stable_prefix(std::string(100'000, 'x')), 98'000u);
  EXPECT_GE(tokenizer_->stable_prefix(std::string(100'000, ' ')), 98'000u);
}

TEST_P(SentencePiece, SavesAndLoads) {
  const TempFolder folder;
  tokenizer_->save(folder / "copy.model");
  const auto back = load_tokenizer((folder / "copy.model").string());
  EXPECT_EQ(back->hash(), tokenizer_->hash());
  EXPECT_EQ(back->hash(), sha256_hex(read_file(folder / "copy.model")));
  EXPECT_EQ(back->vocab_size(), 500);
  EXPECT_EQ(back->kind(), "sentencepiece");
  EXPECT_EQ(back->encode(licence()), tokenizer_->encode(licence()));
  EXPECT_EQ(back->bytes_of(back->document_end()), 0);
  EXPECT_MESSAGE(UserError, "token 500 is out of the vocabulary", back->bytes_of(500));
  back->save(folder / "copy.model");  // over a file that is there
}

TEST_P(SentencePiece, TrainingIsDeterministic) {
  const TempFolder folder;
  const auto text = write_file(folder / "text", licence());
  train_sentencepiece({text}, folder / "again.model", {.vocab_size = 500, .model_type = GetParam()});
  EXPECT_EQ(read_file(folder / "again.model"), read_file(model(GetParam())));
}

INSTANTIATE_TEST_SUITE_P(Types, SentencePiece, ::testing::Values("bpe", "unigram"),
                         [](const auto& type) { return type.param; });

TEST(Training, SamplesFromTheWholeText) {
  const TempFolder folder;
  // Two halves with words of their own; a quarter of the text is drawn, and words of both must be learnt.
  std::string text;
  for (int i = 0; i < 4000; ++i) text += i < 2000 ? "alpha beta gamma\n" : "omega sigma kappa\n";
  const auto path = write_file(folder / "text", text);
  const SentencePieceOptions options{
      .vocab_size = 300, .max_training_bytes = static_cast<int64_t>(text.size() / 4), .seed = 3};
  train_sentencepiece({path}, folder / "a.model", options);
  train_sentencepiece({path}, folder / "b.model", options);
  EXPECT_EQ(read_file(folder / "a.model"), read_file(folder / "b.model"));
  const auto tokenizer = load_tokenizer((folder / "a.model").string());
  EXPECT_LE(tokenizer->encode("alpha beta gamma").size(), 4u);
  EXPECT_LE(tokenizer->encode("omega sigma kappa").size(), 4u);
}

TEST(Training, TakesJsonLinesDamagedTextAndLongLines) {
  const TempFolder folder;
  const auto json = write_file(folder / "a.jsonl", "{\"body\": \"zebra zebra zebra\"}\n{\"body\": \"zebra zebra\"}\n");
  const auto damaged = write_file(folder / "b.txt", licence() + random_bytes(20'000, 1) + licence());
  std::string one_line = licence();
  std::replace(one_line.begin(), one_line.end(), '\n', ' ');
  const auto long_line = write_file(folder / "c.txt", one_line + std::string(20'000, 'q'));
  SentencePieceOptions options{.vocab_size = 600, .corpus = {.json_field = "body"}};
  train_sentencepiece({json, damaged, long_line}, folder / "a.model", options);
  expect_lossless(*load_tokenizer((folder / "a.model").string()), read_file(damaged), "damaged text");
}

// Text of any characters trains at any vocabulary that it is large enough for.
TEST(Training, TakesTextOfAnyCharacters) {
  const TempFolder folder;
  std::string dna, many;
  std::mt19937_64 random(1);
  for (int i = 0; i < 8000; ++i) dna += "ACGT"[random() % 4], dna += i % 40 == 39 ? "\n" : "";
  for (int i = 0; i < 60'000; ++i) {
    append_utf8(many, static_cast<uint32_t>(0x4E00 + random() % 3000 * (random() % 3000) / 3000));
    many += i % 40 == 39 ? "\n" : "";
  }
  const std::vector<std::pair<std::string, std::string>> texts{
      {"no spaces", dna},
      {"few spaces", dna + "A C"},
      {"many characters", many},
      {"one character", std::string(3000, 'a')},
      {"mostly tabs", std::string(5000, '\t') + "ab ab"},
      {"SentencePiece's own symbols", "\xE2\x96\x85 \xE2\x96\x81 one\ntwo \xE2\x96\x85three three\n"},
      {"prose", licence()}};
  for (const auto& [what, text] : texts) {
    write_file(folder / "text", text);
    for (const char* type : {"bpe", "unigram"}) {
      for (const int64_t vocab : {261, 300, 4096}) {
        SCOPED_TRACE(str(what, ", ", type, ", ", vocab));
        SentencePieceOptions options{.vocab_size = vocab, .model_type = type};
        try {
          train_sentencepiece({folder / "text"}, folder / "t.model", options);
        } catch (const UserError& error) {
          // The number in the message works.
          const std::string message = error.what();
          ASSERT_NE(message.find("use --vocab "), std::string::npos) << message;
          ASSERT_EQ(message.find(".cc"), std::string::npos) << message;
          options.vocab_size = std::stoll(message.substr(message.find("use --vocab ") + 12));
          ASSERT_LT(options.vocab_size, vocab);
          train_sentencepiece({folder / "text"}, folder / "t.model", options);
        }
        const auto tokenizer = load_tokenizer((folder / "t.model").string());
        EXPECT_EQ(tokenizer->vocab_size(), options.vocab_size);
        expect_lossless(*tokenizer, text + hard_text(), what);
      }
    }
  }
  for (const char* nothing : {"\t\t\n\t", "\n", "\xFF\xFE\xFF"}) {
    write_file(folder / "text", nothing);
    EXPECT_MESSAGE(UserError, "text", train_sentencepiece({folder / "text"}, folder / "t.model", {.vocab_size = 300}));
  }
}

TEST(Training, SkipsBadRecordsIfAsked) {
  const TempFolder folder;
  const auto lines = write_file(folder / "a.jsonl", "{\"text\": \"words and words\"}\nnot JSON\n");
  SentencePieceOptions options{.vocab_size = 265};
  EXPECT_MESSAGE(UserError, "a.jsonl:2: is not JSON", train_sentencepiece({lines}, folder / "t.model", options));
  options.corpus.skip_errors = true;
  EXPECT_EQ(train_sentencepiece({lines}, folder / "t.model", options).count, 1);
}

TEST(Training, RefusesBadOptions) {
  const TempFolder folder;
  const auto text = write_file(folder / "text", "a few words\n");
  const auto output = folder / "t.model";
  EXPECT_MESSAGE(UserError, "give at least one file", train_sentencepiece({}, output, {}));
  EXPECT_MESSAGE(UserError, "unknown model type \"wordpiece\"",
                 train_sentencepiece({text}, output, {.model_type = "wordpiece"}));
  EXPECT_MESSAGE(UserError, "a vocabulary of 200 tokens", train_sentencepiece({text}, output, {.vocab_size = 200}));
  EXPECT_MESSAGE(UserError, "cannot train a tokenizer of 4096 tokens",
                 train_sentencepiece({text}, output, {.vocab_size = 4096}));
  EXPECT_MESSAGE(UserError, "no such file", train_sentencepiece({folder / "missing"}, output, {}));
  EXPECT_MESSAGE(UserError, "contains no text",
                 train_sentencepiece({write_file(folder / "lines", "\n\n")}, output, {}));
  EXPECT_FALSE(std::filesystem::exists(output));
}

TEST(Loading, RefusesWhatIsNoTokenizer) {
  const TempFolder folder;
  const auto load = [](const std::filesystem::path& path) { load_tokenizer(path.string()); };
  EXPECT_MESSAGE(UserError, "no such tokenizer", load(folder / "missing"));
  EXPECT_MESSAGE(UserError, "is not a tokenizer file", load(folder.path()));
  EXPECT_MESSAGE(UserError, "is empty", load(write_file(folder / "empty", "")));
  EXPECT_MESSAGE(UserError, "not a SentencePiece model", load(write_file(folder / "noise", random_bytes(2000, 3))));
  EXPECT_MESSAGE(UserError, "SentencePiece model", load(write_file(folder / "json", "{\"other\": 1}")));
}

TEST(Loading, DamagedModelsAreRefusedOrLossless) {
  const TempFolder folder;
  write_file(folder / "text", licence());
  train_sentencepiece({folder / "text"}, folder / "t.model", {.vocab_size = 400});
  const std::string whole = read_file(folder / "t.model");
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 random(seed);
    std::string model = whole.substr(0, seed % 2 == 0 ? whole.size() : random() % whole.size());
    for (int i = 0; i < 3 && !model.empty(); ++i) model[random() % model.size()] = static_cast<char>(random());
    try {
      const auto tokenizer = load_tokenizer(write_file(folder / "bad.model", model).string());
      expect_lossless(*tokenizer, hard_text(), str("seed ", seed));
    } catch (const Error&) {
      // A refusal is fine.
    }
  }
}

}  // namespace
}  // namespace tmamba
