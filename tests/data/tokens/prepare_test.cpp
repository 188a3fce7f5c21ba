// prepare(): documents, splits and tokens of its outputs, and what it does with those of another call.
#include "tests/data/tokens/prepare_fixture.h"

namespace tmamba {
namespace {
using testing_files::licence;
using testing_files::random_bytes;
using testing_files::random_unicode;
using testing_files::read_file;
using testing_files::write_file;

TEST_F(Prepare, NothingHeldOut) {
  auto plan = options({write_file(folder_ / "a.txt", "first\n"), write_file(folder_ / "b.txt", "second")});
  plan.held_out = 0;
  const PrepareReport report = prepare(plan);
  EXPECT_EQ(train(*bytes_), (std::vector<std::string>{"first\n", "second"}));
  ASSERT_EQ(report.files.size(), 1u);
  EXPECT_EQ(report.held_out_by, "nothing");
  EXPECT_EQ(report.files[0].tokens, 14);
  EXPECT_EQ(report.files[0].documents, 2);
  EXPECT_EQ(report.files[0].source_bytes, 12);
  EXPECT_EQ(report.files[0].source_hash, sha256_hex("first\nsecond"));
  EXPECT_EQ(names_in(folder_ / "out"), (std::set<std::string>{"train.h5", "dataset.json"}));
  const TokenFile file(folder_ / "out/train.h5");
  EXPECT_EQ(file.info().source_hash, sha256_hex("first\nsecond"));
  EXPECT_EQ(file.info().tokenizer_hash, bytes_->hash());
  EXPECT_EQ(file.info().tokenizer_file, "bytes");
  EXPECT_EQ(file.info().split, "train");
}

TEST_F(Prepare, EndToEndWithSentencePiece) {
  const auto model = sentencepiece();
  auto plan = options({folder_ / "licence"});
  plan.tokenizer = model.string();
  plan.held_out = 0.2;
  const PrepareReport report = prepare(plan);
  EXPECT_EQ(names_in(folder_ / "out"),
            (std::set<std::string>{"train.h5", "valid.h5", "dataset.json", "tokenizer.model"}));
  const TokenFile train_file(folder_ / "out/train.h5"), valid_file(folder_ / "out/valid.h5");
  const auto copied = load_tokenizer((folder_ / "out" / train_file.info().tokenizer_file).string());
  EXPECT_EQ(copied->hash(), train_file.info().tokenizer_hash);
  EXPECT_EQ(train_file.token_bytes(), token_bytes_of(*copied));
  EXPECT_EQ(report.held_out_by, "block");
  EXPECT_EQ(train_file.info().source_bytes + valid_file.info().source_bytes, static_cast<int64_t>(licence().size()));
  EXPECT_NEAR(static_cast<double>(valid_file.info().source_bytes) / static_cast<double>(licence().size()), 0.2, 0.08);
  EXPECT_EQ(valid_file.info().source_hash, sha256_hex(joined(valid(*copied))));
  EXPECT_EQ(train_file.info().source_hash, sha256_hex(joined(train(*copied))));
  // Bytes per token sum to the text.
  std::vector<int32_t> tokens(static_cast<size_t>(train_file.info().tokens));
  train_file.read(0, tokens);
  int64_t sum = 0;
  for (int32_t token : tokens) sum += train_file.token_bytes()[static_cast<size_t>(token)];
  EXPECT_EQ(sum, train_file.info().source_bytes);
  // Every line of the text is in one of the two, whole.
  std::multiset<std::string> lines, wanted;
  const auto add_lines = [](const std::string& text, std::multiset<std::string>& out) {
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) out.insert(line);
  };
  for (const auto& document : train(*copied)) add_lines(document, lines);
  for (const auto& document : valid(*copied)) add_lines(document, lines);
  add_lines(licence(), wanted);
  EXPECT_EQ(lines, wanted);
}

TEST_F(Prepare, ManyDocumentsAreHeldOutWhole) {
  std::string text;
  std::set<std::string> all;
  for (int i = 0; i < 1000; ++i) {
    const std::string document = str("document ", i, "\nof two lines");
    all.insert(document);
    text += document + "\n\n";
  }
  auto plan = options({write_file(folder_ / "a.txt", text)});
  plan.corpus.separator = "\n\n";
  plan.held_out = 0.05;
  const PrepareReport report = prepare(plan);
  EXPECT_EQ(report.held_out_by, "document");
  const auto in_train = train(*bytes_), in_valid = valid(*bytes_);
  EXPECT_EQ(in_valid.size(), 50u);
  EXPECT_EQ(in_train.size(), 950u);
  std::set<std::string> seen(in_train.begin(), in_train.end());
  seen.insert(in_valid.begin(), in_valid.end());
  EXPECT_EQ(seen, all);
}

TEST_F(Prepare, TheSplitIsAFunctionOfSeedAndText) {
  const auto input = write_file(folder_ / "a.txt", licence());
  const auto held_out = [&](uint64_t seed, const std::string& name, const std::string& tokenizer) {
    auto plan = options({input});
    plan.output = folder_ / name;
    plan.seed = seed;
    plan.held_out = 0.2;
    plan.tokenizer = tokenizer;
    return prepare(plan).files.at(1).source_hash;
  };
  const auto first = held_out(1, "o1", "bytes");
  EXPECT_EQ(held_out(1, "o2", "bytes"), first);
  EXPECT_NE(held_out(2, "o3", "bytes"), first);
  EXPECT_EQ(held_out(1, "o4", sentencepiece().string()), first);  // whatever the tokenizer
  EXPECT_EQ(read_file(folder_ / "o1/train.h5"), read_file(folder_ / "o2/train.h5"));
  EXPECT_EQ(read_file(folder_ / "o1/valid.h5"), read_file(folder_ / "o2/valid.h5"));
}

TEST_F(Prepare, BufferSizeDoesNotMatter) {
  const auto model = sentencepiece();
  std::string text = licence() + random_unicode(3000, 1) + random_bytes(3000, 2) + std::string(5000, 'y') + licence();
  const auto plain = write_file(folder_ / "a.txt", text);
  const auto json =
      write_file(folder_ / "b.jsonl", json_line("one \xE2\x98\x83") + "\n" + json_line(licence()) + json_line("last"));
  for (const std::string& tokenizer : {std::string("bytes"), model.string()}) {
    for (const std::string& separator : {std::string(), std::string("\n\n"), std::string("the")}) {
      std::map<int64_t, std::string> trains, valids;
      for (int64_t buffer : {1, 7, 100, 1 << 20}) {
        auto plan = options({plain, json});
        plan.output = folder_ / str("o", buffer);
        plan.overwrite = true;
        plan.tokenizer = tokenizer;
        plan.corpus.separator = separator;
        plan.held_out = 0.1;
        plan.corpus.buffer_bytes = buffer;
        prepare(plan);
        trains[buffer] = read_file(plan.output / "train.h5");
        valids[buffer] = read_file(plan.output / "valid.h5");
        EXPECT_TRUE(trains[buffer] == trains[1]) << tokenizer << " \"" << separator << "\" " << buffer;
        EXPECT_TRUE(valids[buffer] == valids[1]) << tokenizer << " \"" << separator << "\" " << buffer;
        std::filesystem::remove_all(plan.output);
      }
    }
  }
}

TEST_F(Prepare, TokensAreThoseOfEveryDocumentByItself) {
  const auto model = sentencepiece();
  const auto tokenizer = load_tokenizer(model.string());
  const std::vector<std::string> documents{licence(), random_unicode(5000, 3), random_bytes(5000, 4),
                                           std::string(9000, 'z'), "x"};
  std::vector<std::filesystem::path> inputs;
  std::vector<int32_t> expected;
  for (size_t i = 0; i < documents.size(); ++i) {
    inputs.push_back(write_file(folder_ / str("doc", i), documents[i]));
    const auto tokens = tokenizer->encode(documents[i]);
    expected.insert(expected.end(), tokens.begin(), tokens.end());
    expected.push_back(tokenizer->document_end());
  }
  auto plan = options(inputs);
  plan.tokenizer = model.string();
  plan.held_out = 0;
  plan.corpus.format = CorpusFormat::text;  // the third one is binary
  plan.corpus.buffer_bytes = 500;
  prepare(plan);
  const TokenFile file(folder_ / "out/train.h5");
  std::vector<int32_t> tokens(static_cast<size_t>(file.info().tokens));
  file.read(0, tokens);
  EXPECT_EQ(tokens, expected);
  EXPECT_EQ(documents_of(folder_ / "out/train.h5", *tokenizer), documents);
}

TEST_F(Prepare, JsonLinesAndGzip) {
  write_gzip(folder_ / "a.jsonl.gz", json_line("alpha") + "  \n" + json_line("") + json_line("be\nta \xC3\xA9"));
  write_gzip(folder_ / "b.txt.gz", "gamma");
  write_gzip(folder_ / "c.dict.dz", "delta");
  auto plan = options({folder_ / "a.jsonl.gz", folder_ / "b.txt.gz", folder_ / "c.dict.dz"});
  plan.held_out = 0;
  prepare(plan);
  EXPECT_EQ(train(*bytes_), (std::vector<std::string>{"alpha", "be\nta \xC3\xA9", "gamma", "delta"}));
}

TEST_F(Prepare, AnotherJsonField) {
  auto plan = options({write_file(folder_ / "a.jsonl", "{\"content\": \"here\", \"text\": \"not here\"}")});
  plan.held_out = 0;
  plan.corpus.json_field = "content";
  prepare(plan);
  EXPECT_EQ(train(*bytes_), std::vector<std::string>{"here"});
}

TEST_F(Prepare, SeparatorsAcrossBlocks) {
  auto plan = options({write_file(folder_ / "a.txt", "one<|end|>two<|end|><|end|>three<|en")});
  plan.held_out = 0;
  plan.corpus.separator = "<|end|>";
  for (int64_t buffer : {1, 2, 3, 5, 100}) {
    plan.corpus.buffer_bytes = buffer;
    plan.output = folder_ / str("o", buffer);
    prepare(plan);
    EXPECT_EQ(documents_of(plan.output / "train.h5", *bytes_), (std::vector<std::string>{"one", "two", "three<|en"}))
        << buffer;
  }
}

TEST_F(Prepare, ProgressReachesTheEnd) {
  auto plan = options({write_file(folder_ / "a.txt", licence()), write_file(folder_ / "b.txt", licence() + "x")});
  plan.corpus.buffer_bytes = 1000;
  plan.held_out = 0.2;
  std::vector<PrepareProgress> seen;
  plan.progress = [&](const PrepareProgress& at) { seen.push_back(at); };
  prepare(plan);
  ASSERT_GT(seen.size(), 10u);
  for (size_t i = 1; i < seen.size(); ++i) {
    EXPECT_GE(seen[i].bytes_done, seen[i - 1].bytes_done);
    EXPECT_GE(seen[i].tokens, seen[i - 1].tokens);
  }
  EXPECT_EQ(seen.back().bytes_done, seen.back().bytes_total);
  EXPECT_EQ(seen.back().bytes_total, static_cast<int64_t>(2 * licence().size() + 1));
  EXPECT_GT(seen.back().tokens, 0);
}

TEST_F(Prepare, SkippedRecordsAreReportedAlsoByTheSecondCall) {
  auto plan = options({write_file(folder_ / "a.jsonl", json_line("one") + "{}\n" + json_line("two"))});
  plan.held_out = 0;
  plan.corpus.skip_errors = true;
  for (const bool again : {false, true}) {
    const auto report = prepare(plan);
    EXPECT_EQ(report.already_done, again);
    EXPECT_EQ(report.skipped.count, 1);
    ASSERT_EQ(report.skipped.first.size(), 1u);
    EXPECT_NE(report.skipped.first[0].find("a.jsonl:2: has no field"), std::string::npos) << report.skipped.first[0];
  }
  EXPECT_EQ(train(*bytes_), (std::vector<std::string>{"one", "two"}));
  plan.corpus.skip_errors = false;
  EXPECT_MESSAGE(UserError, "a.jsonl:2: has no field", prepare(plan));
}

TEST_F(Prepare, EmptyAndShortDocumentsChangeNoOther) {
  std::string lines;
  for (const char* text : {"", "x", "", "yz", "\n", "last", ""}) lines += json_line(text);
  auto plan = options({write_file(folder_ / "a.jsonl", lines)});
  plan.held_out = 0;
  prepare(plan);
  EXPECT_EQ(train(*bytes_), (std::vector<std::string>{"x", "yz", "\n", "last"}));
}

// --- Doing it again ---

// dataset.json of versions that had fewer options.
TEST_F(Prepare, AnOlderDataSetIsTheSame) {
  auto plan = options({write_file(folder_ / "a.txt", licence())});
  plan.held_out = 0.2;
  prepare(plan);
  auto dataset = nlohmann::json::parse(read_file(folder_ / "out/dataset.json"));
  dataset["options"].erase("format"), dataset["options"].erase("on_error");
  dataset.erase("notes"), dataset.erase("skipped");
  write_file(folder_ / "out/dataset.json", dataset.dump());
  EXPECT_TRUE(prepare(plan).already_done);
  plan.corpus.format = CorpusFormat::text;
  EXPECT_MESSAGE(UserError, "(format differs)", prepare(plan));
  // A damaged one is made again.
  plan.corpus.format = CorpusFormat::automatic;
  dataset["held_out_by"] = 7;
  write_file(folder_ / "out/dataset.json", dataset.dump());
  EXPECT_FALSE(prepare(plan).already_done);
}

TEST_F(Prepare, TheSameAgainDoesNothing) {
  auto plan = options({write_file(folder_ / "a.txt", licence())});
  plan.held_out = 0.2;
  const auto first = prepare(plan);
  EXPECT_FALSE(first.already_done);
  const auto time = std::filesystem::last_write_time(folder_ / "out/train.h5");
  plan.progress = [](const PrepareProgress&) { ADD_FAILURE() << "text was read"; };
  const auto again = prepare(plan);
  EXPECT_TRUE(again.already_done);
  EXPECT_EQ(std::filesystem::last_write_time(folder_ / "out/train.h5"), time);
  ASSERT_EQ(again.files.size(), 2u);
  EXPECT_EQ(again.files[1].source_hash, first.files[1].source_hash);
  EXPECT_EQ(again.files[0].tokens, first.files[0].tokens);
  EXPECT_EQ(again.held_out_by, "block");
  // A copy with the same content, made later, is the same input.
  std::filesystem::last_write_time(folder_ / "a.txt",
                                   std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_TRUE(prepare(plan).already_done);
}

TEST_F(Prepare, AnotherDataSetIsNotOverwrittenUnasked) {
  auto plan = options({write_file(folder_ / "a.txt", licence())});
  plan.held_out = 0.2;
  prepare(plan);
  const std::string before = read_file(folder_ / "out/train.h5");
  auto other = plan;
  other.seed = 9;
  EXPECT_MESSAGE(UserError, "has a different data set (seed differs)", prepare(other));
  other = plan;
  other.tokenizer = sentencepiece().string();
  EXPECT_MESSAGE(UserError, "(the tokenizer differs)", prepare(other));
  EXPECT_EQ(read_file(folder_ / "out/train.h5"), before);
  std::string changed = licence();
  changed[100] = '#';
  write_file(folder_ / "a.txt", changed);
  std::filesystem::last_write_time(folder_ / "a.txt",
                                   std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_MESSAGE(UserError, "(the inputs differ)", prepare(plan));
  write_file(folder_ / "out/dataset.json", "{\"broken");
  EXPECT_MESSAGE(UserError, "another format or version", prepare(plan));
  std::filesystem::remove(folder_ / "out/dataset.json");
  EXPECT_MESSAGE(UserError, "no dataset.json", prepare(plan));
  EXPECT_EQ(read_file(folder_ / "out/train.h5"), before);
  plan.overwrite = true;
  EXPECT_FALSE(prepare(plan).already_done);
  EXPECT_NE(read_file(folder_ / "out/train.h5"), before);
}

TEST_F(Prepare, OverwritingLeavesNothingOfTheOldDataSet) {
  auto plan = options({write_file(folder_ / "a.txt", licence())});
  plan.held_out = 0.2;
  plan.tokenizer = sentencepiece().string();
  prepare(plan);
  write_file(folder_ / "out/notes.txt", "mine");
  plan.tokenizer = "bytes";
  plan.held_out = 0;
  plan.overwrite = true;
  prepare(plan);
  EXPECT_EQ(names_in(folder_ / "out"), (std::set<std::string>{"train.h5", "dataset.json", "notes.txt"}));
}

TEST_F(Prepare, ADamagedOutputIsMadeAgain) {
  auto plan = options({write_file(folder_ / "a.txt", licence())});
  plan.held_out = 0.2;
  prepare(plan);
  const std::string whole = read_file(folder_ / "out/train.h5");
  write_file(folder_ / "out/train.h5", whole.substr(0, 1000));
  EXPECT_FALSE(prepare(plan).already_done);
  EXPECT_EQ(read_file(folder_ / "out/train.h5"), whole);
  std::filesystem::remove(folder_ / "out/valid.h5");
  EXPECT_FALSE(prepare(plan).already_done);
  EXPECT_TRUE(prepare(plan).already_done);
}

TEST_F(Prepare, FoldersOfKilledRunsAreRemoved) {
  std::filesystem::create_directories(folder_ / "out/.prepare-0123");
  write_file(folder_ / "out/.prepare-0123/lock", "");
  write_file(folder_ / "out/.prepare-0123/train.h5", "half");
  auto plan = options({write_file(folder_ / "a.txt", licence())});
  plan.held_out = 0;
  prepare(plan);
  EXPECT_EQ(names_in(folder_ / "out"), (std::set<std::string>{"train.h5", "dataset.json"}));
}

}  // namespace
}  // namespace tmamba
