// prepare() refuses bad inputs and options, and leaves nothing behind where it fails.
#include <cmath>

#include "tests/data/tokens/prepare_fixture.h"

namespace tmamba {
namespace {
using testing_files::licence;
using testing_files::random_bytes;
using testing_files::read_file;
using testing_files::write_file;

class BadInput : public Prepare {
 protected:
  // Expects a refusal with `part` in it, and that nothing is left behind.
  template <class E = UserError>
  void refused(const PrepareOptions& plan, const std::string& part) {
    EXPECT_MESSAGE(E, part, prepare(plan));
    EXPECT_FALSE(std::filesystem::exists(plan.output)) << part;
  }
};

TEST_F(BadInput, Files) {
  const auto good = write_file(folder_ / "good.txt", licence());
  refused(options({}), "no input files");
  refused(options({good, folder_ / "missing.txt"}), "missing.txt: no such file");
  refused(options({good, folder_.path()}), "is a directory");
  refused(options({good, write_file(folder_ / "empty.txt", "")}), "empty.txt: is empty");
  refused(options({good, good}), "good.txt: is given twice");
  refused(options({"/dev/null"}), "not a regular file");
  auto separators = options({write_file(folder_ / "separators", "\n\n\n\n")});
  separators.corpus.separator = "\n\n";
  refused(separators, "the inputs contain no text");
}

TEST_F(BadInput, Options) {
  const auto good = write_file(folder_ / "good.txt", licence());
  auto plan = options({good});
  plan.held_out = 0.6;
  refused(plan, "held_out is 0.6");
  plan.held_out = -1;
  refused(plan, "held_out is -1");
  plan.held_out = std::nan("");
  refused(plan, "held_out is nan");
  plan = options({good});
  plan.tokenizer = (folder_ / "missing.model").string();
  refused(plan, "no such tokenizer");
  plan = options({good});
  plan.output = good;
  EXPECT_MESSAGE(UserError, "is a file; the output must be a directory", prepare(plan));
  plan = options({write_file(folder_ / "tiny", "tiny")});
  refused(plan, "too small to hold out");
}

TEST_F(BadInput, JsonLines) {
  const auto bad = [&](const std::string& line) {
    return options({write_file(folder_ / "bad.jsonl", json_line("fine") + "\n" + line + "\n")});
  };
  refused(bad("{\"other\": \"x\"}"), "bad.jsonl:3: has no field \"text\"");
  refused(bad("{\"text\": 5}"), "bad.jsonl:3: field \"text\" is not a string");
  refused(bad("{\"text\": \"x\""), "bad.jsonl:3: is not JSON");
  refused(bad("[1, 2]"), "bad.jsonl:3: is not a JSON object");
  refused(bad("{\"text\": \"\xFF\"}"), "bad.jsonl:3: is not JSON");
  refused(bad(std::string(100'000, '[')), "bad.jsonl:3: is not JSON");
}

TEST_F(BadInput, JsonLinesThatAreFoundLate) {
  // Enough documents that the first look does not reach the bad one: it is found while writing.
  std::string lines;
  for (int i = 0; i < 5000; ++i) lines += json_line(str("document ", i));
  auto plan = options({write_file(folder_ / "bad.jsonl", lines + "{}\n")});
  plan.held_out = 0.1;
  plan.corpus.buffer_bytes = 1000;
  refused(plan, "bad.jsonl:5001: has no field");
}

TEST_F(BadInput, DamagedGzip) {
  const std::string text = random_bytes(200'000, 1);
  write_gzip(folder_ / "a.gz", text);
  const std::string whole = read_file(folder_ / "a.gz");
  auto plan = options({folder_ / "a.gz"});
  plan.held_out = 0;
  plan.corpus.format = CorpusFormat::text;
  for (size_t keep : {whole.size() - 1, whole.size() - 9, whole.size() / 2, size_t{100}}) {
    write_file(folder_ / "a.gz", whole.substr(0, keep));
    refused(plan, "a.gz: cannot be read");
  }
  std::string flipped = whole;
  flipped[flipped.size() / 2] = static_cast<char>(flipped[flipped.size() / 2] ^ 0x10);
  write_file(folder_ / "a.gz", flipped);
  refused(plan, "a.gz: cannot be read");
}

TEST_F(BadInput, AFileThatChangesWhileItIsRead) {
  auto plan = options({write_file(folder_ / "a.txt", licence())});
  plan.held_out = 0;
  plan.progress = [&](const PrepareProgress&) { write_file(folder_ / "a.txt", licence() + "more"); };
  refused(plan, "a.txt: changed while it was read");
}

TEST_F(BadInput, AnInterruptLeavesNothing) {
  auto plan = options({write_file(folder_ / "a.jsonl", json_line("x") + json_line("y"))});
  for (int calls : {0, 1, 2, 3}) {
    plan.corpus.interrupt = [calls]() mutable {
      if (calls-- == 0) throw Error("stopped");
    };
    refused<Error>(plan, "stopped");
  }
}

TEST_F(BadInput, StandardInput) { refused(options({"-"}), "standard input"); }

TEST_F(BadInput, NoSpaceLeft) {
  auto plan = options({write_file(folder_ / "a.txt", random_bytes(3'000'000, 1))});
  plan.corpus.format = CorpusFormat::text;
  {
    const testing_files::FileSizeLimit limit(300'000);
    refused<Error>(plan, "train.h5: cannot");
    refused<Error>(plan, "train.h5: cannot");
  }
  EXPECT_FALSE(prepare(plan).already_done);  // and afterwards it works
}

TEST_F(BadInput, AFailureLeavesTheOldDataSetAlone) {
  auto plan = options({write_file(folder_ / "a.txt", random_bytes(3'000'000, 1))});
  plan.corpus.format = CorpusFormat::text;
  plan.held_out = 0.2;
  prepare(plan);
  const auto names = names_in(folder_ / "out");
  const std::string before = read_file(folder_ / "out/train.h5");
  plan.seed = 1;
  plan.overwrite = true;
  {
    const testing_files::FileSizeLimit limit(300'000);
    EXPECT_MESSAGE(Error, "train.h5: cannot", prepare(plan));
  }
  plan.progress = [](const PrepareProgress&) { throw Error("stopped"); };
  EXPECT_MESSAGE(Error, "stopped", prepare(plan));
  EXPECT_EQ(names_in(folder_ / "out"), names);
  EXPECT_EQ(read_file(folder_ / "out/train.h5"), before);
}

}  // namespace
}  // namespace tmamba
