// The verbs prepare and tokenizer as a user runs them: their options, JSON output, standard input and signals.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class DataVerbs : public testing::Test {
 protected:
  void SetUp() override { folder_ = enter_test_folder("data-verbs"); }
  void TearDown() override {
    fs::current_path("/");
    fs::remove_all(folder_);
  }
  static void write(const std::string& file, const std::string& content) {
    std::ofstream(file, std::ios::binary) << content;
  }
  static void refused(const std::string& arguments, const std::vector<std::string>& parts, int code = 2) {
    const Outcome outcome = transmamba(arguments);
    EXPECT_EQ(outcome.code, code) << arguments << "\n" << outcome.output;
    for (const std::string& part : parts) EXPECT_NE(outcome.output.find(part), std::string::npos) << outcome.output;
  }
  // What prepare --json prints; the output folder is "out", replaced.
  static nlohmann::json prepared(const std::string& arguments) {
    const Outcome outcome = transmamba("prepare " + arguments + " --output out --overwrite --held-out 0 --json");
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    return nlohmann::json::parse(outcome.output, nullptr, false);
  }

  fs::path folder_;
};

TEST_F(DataVerbs, SeparatorsMayBeEscaped) {
  write("lf.txt", "a\n\nb\n\nc"), write("crlf.txt", "a\r\n\r\nb\r\n\r\nc"), write("tab.txt", "a\tb\tc");
  write("backslash.txt", "a\\nb\\nc");
  for (const auto& [file, separator] :
       std::vector<std::pair<std::string, std::string>>{{"lf.txt", "\\n\\n"},
                                                        {"crlf.txt", "\\r\\n\\r\\n"},
                                                        {"crlf.txt", "\\x0d\\x0A\\r\\n"},
                                                        {"tab.txt", "\\t"},
                                                        {"backslash.txt", "\\\\n"}}) {
    const auto report = prepared(file + " --separator '" + separator + "'");
    EXPECT_EQ(report["files"][0]["documents"], 3) << separator;
    EXPECT_EQ(report["files"][0]["source_bytes"], 3) << separator;
    EXPECT_TRUE(report["notes"].empty()) << separator;
  }
  EXPECT_NE(prepared("crlf.txt --separator '\\n\\n'")["notes"].dump().find("separator was not found"),
            std::string::npos);
  for (const char* bad : {"\\q", "\\", "\\x4", "\\xg0"}) {
    refused(std::string("prepare lf.txt --output out --separator '") + bad + "'", {"--separator", "\\xHH"});
  }
}

TEST_F(DataVerbs, OptionsAreChecked) {
  write("a.txt", "some text");
  refused("prepare a.txt -o out --held-out nan", {"--held-out nan", "between 0 and 0.5"});
  refused("prepare a.txt -o out --seed -1", {"--seed -1"});
  refused("prepare a.txt -o out --max-errors -2", {"--max-errors -2"});
  refused("prepare a.txt -o out --on-error ignore", {"--on-error ignore", "stop, skip"});
  refused("prepare a.txt -o out --format csv", {"--format csv", "auto, text, jsonl"});
  refused("prepare - -o out", {"standard input"});
  refused("tokenizer train a.txt -o t.model --vocab 260", {"a vocabulary of 260 tokens", "261"});
  refused("tokenizer train a.txt -o t.model --max-bytes 0", {"--max-bytes 0"});
  refused("tokenizer train a.txt -o missing/t.model", {"missing/t.model", "does not exist"});
  refused("tokenizer train a.txt -o .", {"is a directory"});
  refused("tokenizer encode .", {".: is a directory"});
  refused("tokenizer learn a.txt", {"tokenizer learn", "train, encode, decode"});
  EXPECT_FALSE(fs::exists("out") || fs::exists("t.model"));
}

TEST_F(DataVerbs, SkippedRecordsAreCounted) {
  std::string lines = "{\"text\": \"good\"}\n";
  for (int i = 0; i < 12; ++i) lines += "bad\n";
  write("a.jsonl", lines);
  refused("prepare a.jsonl -o out", {"a.jsonl:2: is not JSON", "--on-error skip"});
  refused("prepare a.jsonl -o out --on-error skip --max-errors 11", {"More than 11 records", "a.jsonl:2: "});
  EXPECT_FALSE(fs::exists("out"));
  const auto report = prepared("a.jsonl --on-error skip --max-errors 12");
  EXPECT_EQ(report["skipped"]["records"], 12);
  EXPECT_EQ(report["skipped"]["first"].size(), 10u);
  refused("prepare a.jsonl -o out --overwrite --held-out 0 --on-error skip",
          {"cannot be read: 12", "a.jsonl:11: is not"}, 0);
  refused("tokenizer train a.jsonl -o t.model --vocab 262 --on-error skip", {"cannot be read: 12", "262 tokens"}, 0);
}

TEST_F(DataVerbs, TokenizersReadStandardInputAndFields) {
  const std::string program = command_line("", 0);
  EXPECT_EQ(shell("printf 'word word other' | " + program + "tokenizer train - -o t.model --vocab 265").code, 0);
  EXPECT_EQ(shell("printf '{\"body\": \"word word other\"}' | gzip | " + program +
                  "tokenizer train - -o u.model --vocab 265 --field body --json")
                .code,
            0);
  EXPECT_EQ(read_file("t.model"), read_file("u.model"));
  const Outcome tokens = shell("printf 'word\\377' | " + program + "tokenizer encode - --tokenizer t.model | " +
                               program + "tokenizer decode - --tokenizer t.model");
  EXPECT_EQ(tokens.output, "word\xFF");
  const Outcome text = shell("echo 104 105 | " + program + "tokenizer decode - --json");
  EXPECT_EQ(nlohmann::json::parse(text.output), "hi");
}

// A signal while the text is read ends with 1 and leaves nothing; one to a folder with a data set leaves that one.
TEST_F(DataVerbs, SignalsStopThem) {
  write_text("text.txt", 3'000'000);
  ASSERT_EQ(shell("for i in $(seq 40); do cat text.txt; done > large.txt").code, 0);
  const std::string program = command_line("", 0);
  for (const char* signal : {"INT", "TERM"}) {
    // The folder exists once text is read.
    const Outcome outcome = shell(program +
                                  "prepare large.txt -o out & p=$!; until [ -n \"$(ls -A out 2>/dev/null)\" ]; do "
                                  "kill -0 $p || break; sleep 0.01; done; kill -" +
                                  signal + " $p; wait $p");
    EXPECT_EQ(outcome.code, 1) << outcome.output;
    EXPECT_NE(outcome.output.find(std::string("stopped by SIG") + signal), std::string::npos) << outcome.output;
    EXPECT_FALSE(fs::exists("out"));
  }
  write("small.txt", "small");
  prepared("small.txt");
  const std::string before = read_file("out/train.h5");
  const Outcome outcome = shell(program +
                                "prepare large.txt -o out --overwrite & p=$!; until ls -d out/.prepare-* ; do "
                                "kill -0 $p || break; sleep 0.01; done; kill -TERM $p; wait $p");
  EXPECT_EQ(outcome.code, 1) << outcome.output;
  EXPECT_EQ(read_file("out/train.h5"), before);
  EXPECT_EQ(shell("ls -A out").output, "dataset.json\ntrain.h5\n");
  // Training takes no notice of a flag, so the signal ends it at once.
  const Outcome training =
      shell("mkfifo in; sleep 60 >in & s=$!; " + program +
            "tokenizer train - -o t.model <in & p=$!; "
            "until grep -q '^SigCgt:.*[4-7c-f]...$' /proc/$p/status; do kill -0 $p || break; sleep "
            "0.01; done; kill -TERM $p; wait $p; code=$?; kill $s; exit $code");
  EXPECT_EQ(training.code, 1) << training.output;
  EXPECT_NE(training.output.find("stopped by SIGTERM"), std::string::npos) << training.output;
  EXPECT_FALSE(fs::exists("t.model"));
}

}  // namespace
}  // namespace tmamba
