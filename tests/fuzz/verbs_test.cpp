// Starts whole verbs with random options and damaged files: each must end by itself, within ten seconds of processor
// time, with an exit code of the table. TMAMBA_FUZZ_VERBS=N makes N runs, TMAMBA_FUZZ_SEED another sequence.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>

#include "launch/cli/exit_code.h"
#include "launch/cli/options.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

uint64_t number_in(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

std::string quoted(const std::string& text) {
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

class Verbs : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("fuzz-verbs");
    prepare_bytes(30000);
    write_config("run.toml", "steps = 1\nglobal_batch = 2");
    ASSERT_EQ(transmamba("train run.toml --set run.dir=whole").code, 0);
  }
  void TearDown() override { leave_test_folder(); }

  size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }
  const std::string& one_of(const std::vector<std::string>& values) { return values[below(values.size())]; }

  // Cuts a copy of one of the files short, overwrites bytes of it, or replaces it by other text.
  void damage(const fs::path& file) {
    std::string content = read_file(file);
    if (const size_t how = below(3); how == 0) {
      content.resize(below(content.size() + 1));
    } else if (how == 1) {
      for (int i = 0; i < 8 && !content.empty(); ++i) content[below(content.size())] = static_cast<char>(below(256));
    } else {
      content =
          one_of({"", "{}", "[model]\ndim = -1\n", "\x89HDF\r\n\x1a\n", std::string(3000, '\0'), "nan", "\xff\xfe"});
    }
    std::ofstream(file, std::ios::binary) << content;
  }

  // What the last run used, anew, with some files damaged.
  void make_files() {
    for (const char* made : {"a.toml", "a.h5", "a.txt", "a", "out"}) fs::remove_all(made);
    fs::copy_file("run.toml", "a.toml");
    fs::copy_file("data/train.h5", "a.h5");
    fs::copy_file("text.txt", "a.txt");
    fs::copy("whole", "a", fs::copy_options::recursive);
    std::vector<fs::path> files{"a.toml", "a.h5", "a.txt"};
    for (const auto& entry : fs::recursive_directory_iterator("a")) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    for (size_t i = below(4); i > 0; --i) damage(files[below(files.size())]);
  }

  std::string value_of(const Option& option) {
    const bool usual = below(3) > 0;
    if (option.name == "set") {
      return one_of(
          {"run.device=cpu", "model.dim=0", "train.lr=nan", "x", "=", "model.schedule=[0]", "data.train=a.h5"});
    }
    if (!option.choices.empty() && usual) return one_of(option.choices);
    if (option.kind == Option::Kind::integer || option.kind == Option::Kind::number) {
      const double least = option.limits.min;
      if (usual) return plain_number(least + static_cast<double>(below(2)));
      return one_of(
          {plain_number(least - 1), "nan", "-0", "1e30", "1000000000000000000000000000000", "", "0x10", "1.5"});
    }
    return one_of({"a.toml", "a.h5", "a.txt", "a", "out", "a/checkpoints", "missing", "", ".", "\xff",
                   std::string(5000, 'x'), "cpu", "bytes", "-"});
  }

  std::string command() {
    const std::vector<VerbOptions>& verbs = all_verb_options();
    const VerbOptions& verb = verbs[below(verbs.size())];
    std::string line = verb.name;
    for (const Option& argument : verb.arguments) {
      // Without a configuration `bench` times a model that takes longer than this test may.
      const bool config = argument.name == "config";
      if (!config && below(12) == 0) continue;
      line += " " + quoted(config ? one_of({"a.toml", "a.toml", "a.toml", "a.h5"}) : value_of(argument));
    }
    for (size_t i = below(4); i > 0 && !verb.options.empty(); --i) {
      const Option& option = verb.options[below(verb.options.size())];
      line += " --" + option.long_name();
      if (option.kind != Option::Kind::flag) line += " " + quoted(value_of(option));
    }
    if (verb.name == "doctor") line += " --seconds 0.1";
    if (verb.name == "scale") line += " --list";  // does not start other processes
    return line + (below(4) == 0 ? " --json" : "");
  }

  std::mt19937_64 random_{number_in("TMAMBA_FUZZ_SEED", 1)};
};

TEST_F(Verbs, EndWithAnExitCodeOfTheTable) {
  const uint64_t runs = number_in("TMAMBA_FUZZ_VERBS", 40);
  std::map<int, int> codes;
  for (uint64_t run = 0; run < runs; ++run) {
    make_files();
    const std::string line = command();
    const Outcome outcome =
        shell("ulimit -t 10; ulimit -c 0; timeout -s KILL 120 " + command_line(line, 0) + " </dev/null");
    ++codes[outcome.code];
    EXPECT_TRUE(std::any_of(kExitCodes.begin(), kExitCodes.end(),
                            [&](const ExitMeaning& known) { return known.code == outcome.code; }))
        << "run " << run << ": exit code " << outcome.code << " of " << line << "\n"
        << outcome.output.substr(0, 4000);
    EXPECT_TRUE(outcome.code != kBadInput || !outcome.output.empty()) << line << " does not say what is wrong";
  }
  // Otherwise the inputs would not reach far.
  EXPECT_GT(codes[kBadInput], 0);
  EXPECT_GT(codes[kDone], 0);
}

}  // namespace
}  // namespace tmamba
