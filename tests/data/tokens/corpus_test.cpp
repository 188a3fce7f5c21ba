// read_corpus(): kinds of files, gzip members, JSON lines, records that cannot be read.
#include "data/tokens/corpus.h"

#include <sys/stat.h>

#include <cstring>

#include "data/tokens/json_line.h"
#include "tests/data/tokens/prepare_fixture.h"

namespace tmamba {
namespace {
using testing_files::licence;
using testing_files::random_unicode;
using testing_files::read_file;
using testing_files::TempFolder;
using testing_files::write_file;

class Corpus : public ::testing::Test {
 protected:
  using Texts = std::vector<std::string>;

  Texts read(const std::filesystem::path& path) {
    Texts texts{""};
    CorpusHandler handler;
    handler.text = [&](std::string_view text) { texts.back() += text; };
    handler.end_document = [&] { texts.emplace_back(); };
    skipped_ = {};
    summary_ = read_corpus(path, options_, handler, skipped_);
    texts.pop_back();
    return texts;
  }
  Texts read_text(const std::string& name, const std::string& content) {
    return read(write_file(folder_ / name, content));
  }
  void refused(const std::string& name, const std::string& content, const std::string& part) {
    SCOPED_TRACE(name);
    EXPECT_MESSAGE(UserError, part, read_text(name, content));
    EXPECT_MESSAGE(UserError, part, measure_corpus(folder_ / name, options_, 1'000'000));
  }

  TempFolder folder_;
  CorpusOptions options_;
  CorpusSummary summary_;
  SkippedRecords skipped_;
};

std::string gzipped(const std::string& text) {
  const TempFolder folder;
  write_gzip(folder / "a", text);
  return read_file(folder / "a");
}

TEST_F(Corpus, WhatIsNotTextIsRefusedByItsKind) {
  using namespace std::string_literals;
  const std::vector<std::pair<std::string, std::string>> kinds{
      {"\x28\xB5\x2F\xFD data"s, "is Zstandard data"},
      {"\xFD"
       "7zXZ\0 data"s,
       "is xz data"},
      {"BZh91AY&SY data"s, "is bzip2 data"},
      {"\x04\x22\x4D\x18 data"s, "is LZ4 data"},
      {"PK\x03\x04 data"s, "is a zip archive"},
      {std::string(257, 'n') + "ustar\0"s, "is a tar archive"},
      {"PAR1\0\1PAR1"s, "is a Parquet file"},
      {"ARROW1\0\0"s, "is an Arrow file"},
      {"\x89HDF\r\n\x1A\n"s, "is an HDF5 file"},
      {"\x93NUMPY\1\0"s, "is a NumPy array"},
      {"\x80\x04\x95 pickle"s, "is a Python pickle"},
      {"%PDF-1.7\n"s, "is a PDF document"},
      {"\x89PNG\r\n\x1A\n"s, "is a PNG image"},
      {"\xFF\xD8\xFF\xE0 jpeg"s, "is a JPEG image"},
      {"\x7F"
       "ELF\2\1"s,
       "is an ELF program"},
      {"\xFF\xFE"
       "a\0b\0"s,
       "is UTF-16 text"},
      {"\xFE\xFF\0a\0b"s, "is UTF-16 text"},
      {"\xFF\xFE\0\0a\0\0\0"s, "is UTF-32 text"},
      {"a\0b\0c\0"s, "binary data, not text: byte 1 is NUL"},
  };
  for (const auto& [content, message] : kinds) {
    for (const char* name : {"a.txt", "a.jsonl", "a"}) refused(name, content, message);
    refused("b.txt", gzipped(content), message.substr(0, message.find(" data, not")));
    refused("b.gz", gzipped(content), "inside gzip");
  }
  refused("twice.gz", gzipped(gzipped("text")), "is gzip data inside gzip");
  // A name that promises a kind which the content is not: the beginning may be damaged.
  for (const char* name : {"a.gz", "a.PARQUET", "a.zst", "a.jsonl.xz", "a.npy"}) refused(name, "text", "is named as");
  refused("a.parquet.gz", gzipped("text"), "is named as a Parquet file");
  options_.format = CorpusFormat::text;
  EXPECT_EQ(read_text("a.bin", "a\0b"s), Texts{"a\0b"s});
  EXPECT_EQ(read_text("a.zst", "text"), Texts{"text"});
}

TEST_F(Corpus, FilesThatAreNotRegular) {
  EXPECT_MESSAGE(UserError, "no such file", read(folder_ / "missing"));
  EXPECT_MESSAGE(UserError, "is a directory", read(folder_.path()));
  EXPECT_MESSAGE(UserError, "is a device, not a regular file", read("/dev/null"));
  ASSERT_EQ(mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_MESSAGE(UserError, "is a named pipe, not a regular file", read(folder_ / "pipe"));
  std::filesystem::create_symlink("nowhere", folder_ / "dangling");
  EXPECT_MESSAGE(UserError, "no such file", read(folder_ / "dangling"));
  write_file(folder_ / "a.txt", "text");
  std::filesystem::create_symlink("a.txt", folder_ / "link");
  EXPECT_EQ(read(folder_ / "link"), Texts{"text"});
  refused("empty.txt", "", "is empty");
  refused("empty.gz", gzipped(""), "has no text inside gzip");
}

TEST_F(Corpus, RefusedFilesAreClosed) {
  const auto open_files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
  };
  const auto before = open_files();
  refused("empty.txt", "", "is empty");
  refused("a.txt", "PAR1", "is a Parquet file");
  refused("a.gz", gzipped("text").substr(0, 15), "is truncated");
  EXPECT_MESSAGE(UserError, "is a directory", read(folder_.path()));
  EXPECT_EQ(open_files(), before);
}

TEST_F(Corpus, ConcatenatedGzipMembers) {
  const std::string big = random_unicode(400'000, 1);  // larger than a block of the reader
  const std::string members = gzipped("one ") + gzipped("") + gzipped(big) + gzipped("\nend");
  for (int64_t buffer : {1 << 10, 1 << 20}) {
    options_.buffer_bytes = buffer;
    EXPECT_EQ(read_text("a.gz", members), Texts{"one " + big + "\nend"});
  }
  // Members that begin at every position around the end of a block.
  for (size_t extra = 0; extra < 30; ++extra) {
    std::string first = gzipped(testing_files::random_bytes((size_t{1} << 18) - 120 + extra * 5, extra));
    options_.format = CorpusFormat::text;
    const Texts texts = read_text("b.gz", first + gzipped("tail"));
    EXPECT_TRUE(texts[0].ends_with("tail")) << first.size();
  }
}

// Damage in any member is an error with the byte, never a shorter text.
TEST_F(Corpus, DamagedGzipMembers) {
  const std::vector<std::string> members{gzipped(licence()), gzipped("middle"), gzipped("the last")};
  for (size_t which = 0; which < members.size(); ++which) {
    size_t begin = 0;
    for (size_t i = 0; i < which; ++i) begin += members[i].size();
    for (const size_t at : {size_t{0}, size_t{1}, size_t{2}, members[which].size() / 2, members[which].size() - 6,
                            members[which].size() - 1}) {
      std::string damaged = members[0] + members[1] + members[2];
      damaged[begin + at] = static_cast<char>(damaged[begin + at] ^ 0x55);
      const auto message = testing_files::message_of<UserError>([&] { read_text("a.gz", damaged); });
      EXPECT_NE(message.find(which == 0 && at < 2 ? "is named as gzip data" : "a.gz: cannot be read: its gzip data"),
                std::string::npos)
          << which << " " << at << ": " << message;
    }
    std::string cut;
    for (size_t i = 0; i < members.size(); ++i)
      cut += i == which ? members[i].substr(0, members[i].size() - 5) : members[i];
    EXPECT_MESSAGE(UserError, "cannot be read: its gzip data is", read_text("a.gz", cut));
  }
  const std::string whole = gzipped("text");
  EXPECT_MESSAGE(UserError, str("followed by bytes that are not gzip at byte ", whole.size(), ";"),
                 read_text("a.gz", whole + "trailing"));
  EXPECT_MESSAGE(UserError, "followed by bytes", read_text("a.gz", whole + std::string(512, '\0')));
  EXPECT_MESSAGE(UserError, str("is truncated: it ends at byte ", whole.size() - 1),
                 read_text("a.gz", whole.substr(0, whole.size() - 1)));
  options_.skip_errors = true;  // which is for records
  EXPECT_MESSAGE(UserError, "followed by bytes", read_text("a.gz", whole + "trailing"));
}

TEST_F(Corpus, JsonLinesByContentOrName) {
  const std::string lines = "{\"text\": \"a\"}\r\n{\"text\":\"b\"}";
  for (const char* name : {"a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.txt", "a"}) {
    EXPECT_EQ(read_text(name, lines), (Texts{"a", "b"})) << name;
    EXPECT_EQ(summary_.notes.size(), std::string_view("a.txt").starts_with(name) ? 1u : 0u) << name;
    EXPECT_EQ(read_text(std::string(name) + ".GZ", gzipped("\xEF\xBB\xBF\n " + lines)), (Texts{"a", "b"})) << name;
    EXPECT_EQ(summary_.documents, 2);
    EXPECT_EQ(summary_.text_bytes, 2);
  }
  for (const char* text : {"{braces} are text", "[{\"brackets\"] too", "{\"quoted\" words}", "{", "{\"cut"}) {
    EXPECT_EQ(read_text("a.txt", text), Texts{text});
  }
  refused("a.json", "[\n {\"text\": \"a\"}\n]", "is one JSON array of objects");
  refused("a.json", "{\n \"text\": \"a\"\n}", "a.json:1: is not JSON");
  options_.format = CorpusFormat::text;
  EXPECT_EQ(read_text("a.jsonl", lines), Texts{lines});
  options_.format = CorpusFormat::json_lines;
  refused("a.txt", "text", "a.txt:1: is not JSON");
}

TEST_F(Corpus, ByteOrderMarksAreNoText) {
  EXPECT_EQ(read_text("a.txt", "\xEF\xBB\xBFtext\xEF\xBB\xBF"), Texts{"text\xEF\xBB\xBF"});
}

TEST_F(Corpus, NotesSayWhatMayBeUnexpected) {
  options_.separator = "\n\n";
  EXPECT_EQ(read_text("a.txt", "a\r\n\r\nb"), Texts{"a\r\n\r\nb"});
  ASSERT_EQ(summary_.notes.size(), 1u);
  EXPECT_NE(summary_.notes[0].find("a.txt: the separator was not found"), std::string::npos);
  EXPECT_EQ(read_text("a.txt", "a\n\nb"), (Texts{"a", "b"}));
  EXPECT_TRUE(summary_.notes.empty());
  options_.separator.clear();
  read_text("a.txt", std::string(9000, 'a') + std::string(3, '\0'));
  ASSERT_EQ(summary_.notes.size(), 1u);
  EXPECT_NE(summary_.notes[0].find("NUL bytes in its text: 3, the first at byte 9000"), std::string::npos)
      << summary_.notes[0];
}

TEST_F(Corpus, JsonAsPythonWritesIt) {
  EXPECT_EQ(
      read_text(
          "a.jsonl",
          "{\"x\": NaN, \"y\": [Infinity, -Infinity, 1e400, -1E-999], \"text\": \"a\", \"s\": \"\\ud800\"}\n"
          "{\"\\udead\": {\"text\": \"inner\", \"a\": [[], {}]}, \"te\\u0078t\": \"\\ud83d\\ude00\\n\\/\\u00e9\"}\n"
          "{\"other\": \"\xFF\", \"text\": \"b\", \"n\": 123456789012345678901234567890}\n"),
      (Texts{"a", "\xF0\x9F\x98\x80\n/\xC3\xA9", "b"}));
}

TEST_F(Corpus, BadRecordsStopOrAreSkipped) {
  const std::vector<std::pair<std::string, std::string>> bad{
      {"[1, 2]", "is not a JSON object"},
      {"7", "is not a JSON object"},
      {"{}", "has no field"},
      {"{\"text\": null}", "is not a string"},
      {"{\"text\": [\"a\"]}", "is not a string"},
      {"{\"text\": \"a\", \"text\": \"b\"}", "has the field \"text\" twice"},
      {"{\"text\": \"\\udc00\"}", "lone surrogate \\udc00"},
      {"{\"text\": \"\\ud800\\u0041\"}", "lone surrogate \\ud800"},
      {"{\"text\": \"a\"}{\"text\": \"b\"}", "text after the value at column 14"},
      {"{\"text\": \"a", "does not end"},
      {"{\"text\": \"a\",}", "expected '\"'"},
      {"{\"text\": \"\\x\"}", "unknown escape"},
      {"{\"text\": \"\\u12\"}", "hexadecimal"},
      {"{\"text\": \"a\", \"n\": 01}", "expected"},
      {"{\"text\": \"a\", \"n\": [1 2]}", "expected ']'"},
      {"{\"text\": \"a\tb\"}", "control character"},
      {"{\"text\": \"\xC3\"}", "not UTF-8"},
      {"text", "is not JSON"},
  };
  std::string all = json_line("first");
  for (const auto& [line, message] : bad) {
    refused("one.jsonl", json_line("x") + line + "\n", message);
    refused("one.jsonl", json_line("x") + line + "\n", "one.jsonl:2: ");
    all += line + "\n";
  }
  all += json_line("last");
  options_.skip_errors = true;
  EXPECT_EQ(read_text("all.jsonl", all), (Texts{"first", "last"}));
  EXPECT_EQ(skipped_.count, static_cast<int64_t>(bad.size()));
  ASSERT_EQ(skipped_.first.size(), 10u);
  EXPECT_NE(skipped_.first[0].find("all.jsonl:2: is not a JSON object"), std::string::npos) << skipped_.first[0];
  options_.max_errors = static_cast<int64_t>(bad.size());
  EXPECT_EQ(read_text("all.jsonl", all), (Texts{"first", "last"}));
  options_.max_errors = 4;
  const auto message = testing_files::message_of<UserError>([&] { read_text("all.jsonl", all); });
  EXPECT_NE(message.find("More than 4 records cannot be read (`--max-errors` sets this limit)"), std::string::npos);
  EXPECT_NE(message.find("all.jsonl:6: "), std::string::npos) << message;
}

// What nlohmann::json accepts has the same text.
TEST_F(Corpus, JsonTextIsThatOfAnotherParser) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    std::mt19937_64 random(seed);
    nlohmann::json object{{"text", random_unicode(random() % 60, seed)}, {"n", random() % 2 ? 1e300 : -0.5}};
    object["list"] = {1, "x", nullptr, {{"deep", {true, nlohmann::json::array(), nlohmann::json::object()}}}};
    object[random_unicode(3, seed)] = random_unicode(5, seed + 1);
    const std::string line = object.dump(random() % 2 ? -1 : 1, ' ', random() % 2 == 0);
    std::string buffer;
    EXPECT_EQ(json_line_text(line, "text", buffer), object["text"].get<std::string>()) << line;
    // Changed bytes: whatever is accepted by both is the same.
    std::string changed = line;
    for (int i = 0; i < 2; ++i) changed[random() % changed.size()] = "\"\\{}[],:0eu\n "[random() % 13];
    const auto other = nlohmann::json::parse(changed, nullptr, false);
    try {
      const std::string text(json_line_text(changed, "text", buffer));
      EXPECT_TRUE(other.is_discarded() || other.at("text") == text) << changed;
    } catch (const UserError& error) {
      const bool twice = std::string_view(error.what()).find("twice") != std::string_view::npos;
      EXPECT_TRUE(twice || !other.is_object() || !other.contains("text") || !other["text"].is_string()) << changed;
    }
  }
}

TEST_F(Corpus, InterruptStopsEveryReading) {
  options_.interrupt = [] { throw Error("enough"); };
  write_file(folder_ / "a.jsonl", json_line("x"));
  EXPECT_MESSAGE(Error, "enough", read(folder_ / "a.jsonl"));
  EXPECT_MESSAGE(Error, "enough", measure_corpus(folder_ / "a.jsonl", options_, 1));
}

}  // namespace
}  // namespace tmamba
