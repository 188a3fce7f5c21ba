// Mistakes get a message that says what, where and what to do, exit code 2, and leave everything as it was.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class BadInput : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    enter_test_folder("bad-input");
    prepare_bytes();
    write_config("run.toml", "steps = 2\nglobal_batch = 2");
    ASSERT_EQ(transmamba("train run.toml --set run.dir=good").code, 0);
  }
  static void TearDownTestSuite() {
    const fs::path folder = fs::current_path();
    fs::current_path("/");
    fs::remove_all(folder);
  }

  static void refused(const std::string& arguments, const std::vector<std::string>& parts, int code = 2,
                      int ranks = 0) {
    const Outcome outcome = transmamba(arguments, ranks);
    EXPECT_EQ(outcome.code, code) << arguments << "\n" << outcome.output;
    for (const std::string& part : parts)
      EXPECT_NE(outcome.output.find(part), std::string::npos) << arguments << " does not say: " << part << "\n"
                                                              << outcome.output;
    EXPECT_FALSE(fs::exists("run")) << arguments << " left a run directory";
    fs::remove_all("run");
  }
};

TEST_F(BadInput, Configuration) {
  refused("train run.toml --set train.lrr=1", {"unknown key train.lrr", "train.lr"});
  refused("train run.toml --set modle.dim=1", {"unknown key modle.dim", "model.dim"});
  refused("train run.toml --set train.lr=fast", {"train.lr", "must be a number"});
  refused("train run.toml --set train.global_batch=-1", {"train.global_batch", "out of range"});
  refused("train run.toml --set model.heads=3", {"model.dim = 32", "not divisible", "model.heads = 3"});
  refused("train run.toml --set model.schedule=[0,65]", {"TransPoint 65", "sequence length 64"});
  refused("train run.toml --set 'model.schedule=[\"3/2\"]'", {"3/2", "fraction"});
  refused("train run.toml --set model.converter=mlp2", {"model.converter", "exact", "zero"});
  refused("train run.toml --set model.vocab=100", {"model.vocab = 100", "257"});
  refused("train run.toml --set train.global_batch=3", {"train.global_batch = 3", "2 data-parallel ranks"}, 2, 2);
  refused("train run.toml --set parallel.tp=3", {"parallel.tp"}, 2, 2);
  refused("train run.toml --set parallel.tp=4 --set model.heads=2", {"parallel.tp = 4", "model.heads = 2"}, 2, 4);
  refused("train run.toml --set parallel.sp=2 --set model.chunk=64", {"segments"}, 2, 2);
  refused("plan run.toml --set model.heads=3", {"not divisible"});
  refused("train run.toml --set run.device=cuda", {"CUDA"});
  refused("train run.toml --set run.device=cuda", {"NCCL", "TMAMBA_CUDA=ON", "run.device"}, 2, 2);
  refused("train run.toml --set train.dtype=bfloat16", {"train.dtype", "run.device", "float32"});
  refused("train run.toml --check --set train.dtype=bfloat16", {"train.dtype", "run.device"});
  refused("bench step --set train.dtype=bfloat16", {"train.dtype", "run.device"});
  refused("eval good --set train.dtype=bfloat16", {"train.dtype", "run.device"});
  refused("generate good --device gpu", {"--device gpu", "cpu", "cuda"});
  refused("train missing.toml", {"missing.toml", "cannot read"});
  std::ofstream("broken.toml") << "[model]\ndim = 32\nheads = = 2\n";
  refused("train broken.toml", {"broken.toml:3"});
  std::ofstream("typo.toml") << "[model]\ndim = 32\nlayerz = 2\n";
  refused("train typo.toml", {"typo.toml:3", "layerz", "model.layers"});
}

TEST_F(BadInput, TheCheckFindsWhatTrainingWould) {
  std::ofstream("text.h5") << "this is no HDF5 file, it is a sentence that is long enough to be one";
  refused("train run.toml --check --set data.train=nope.h5", {"nope.h5"});
  refused("train run.toml --check --set data.train=text.h5", {"text.h5", "HDF5"});
  refused("train run.toml --check --set parallel.tp=3", {"parallel.tp"});
  refused("train run.toml --check --set run.memory_limit=1e-6", {"run.memory_limit"});
  refused("train run.toml --check --set run.dir=text.h5", {"run.dir = text.h5", "a file"});
  refused("train run.toml --set run.dir=text.h5", {"run.dir = text.h5", "a file"});
  refused("train run.toml --check", {"global_batch = 2"}, 0);
}

TEST_F(BadInput, CommandLine) {
  refused("trian run.toml", {"unknown verb \"trian\"", "did you mean train?", "exit codes"});
  refused("train", {"config is missing"});
  refused("train run.toml --sett a=b", {"--sett", "did you mean --set?"});
  refused("train run.toml extra", {"unexpected argument extra", "usage: transmamba train CONFIG"});
  refused("train ru.toml", {"ru.toml: cannot read", "did you mean run.toml?"});
  refused("eval god", {"checkpoint god: ", "did you mean good?"});
  refused("eval god/checkpoints/step-00000003", {"did you mean good/checkpoints/step-00000002?"});
  refused("eval good --data dat/valid.h5", {"--data dat/valid.h5", "did you mean data/valid.h5?"});
  refused("checkpoint frobnicate good", {"frobnicate", "ls, inspect, verify"});
  refused("checkpoint lss good", {"lss", "did you mean ls?"});
  refused("checkpoint ls good --keep 3", {"--keep is for checkpoint prune, not for checkpoint ls"});
  refused("bench ops run.toml --io x", {"--io is for bench step, not for bench ops"});
  refused("explain train.lrr", {"train.lr"});
  refused("explain train.dtype", {"(float32, float64, bfloat16)"}, 0);
  refused("explain train.lr", {"(between 0 and 10)"}, 0);
  refused("--version", {"transmamba ", "commit ", "compiler ", "CUDA ", "MPI ", "HDF5 "}, 0);
}

TEST_F(BadInput, OptionsOutOfRange) {
  for (const char* batch : {"0", "-1", "1e3", "1.5", "\"\"", "many", "1000000000000000000000000000000"}) {
    refused(std::string("eval good --batch ") + batch, {"--batch ", "must be "});
  }
  refused("eval good --batch 0", {"--batch 0: must be between 1 and 1048576"});
  refused("eval good --batch 1048576 --set run.device=cpu --seq-len 9999", {"--batch 1048576", "smaller --batch"});
  refused("generate good --tokens -100", {"--tokens -100: must be between 1 and 1e9"});
  for (const char* temperature : {"nan", "inf", "-0.5", "1e999", "hot"}) {
    refused(std::string("generate good --temperature ") + temperature, {"--temperature ", "must be a number"});
  }
  refused("generate good --top-k -1", {"--top-k -1: must be at least 0"});
  refused("generate good --seed -1", {"--seed -1"});
  refused("generate good --count 0", {"--count 0"});
  refused("prepare text.txt --output x --held-out 0.6", {"--held-out 0.6", "between 0 and 0.5"});
  refused("prepare text.txt --output \"\"", {"--output \"\"", "must not be empty"});
  refused("plan run.toml --ranks 2000000", {"--ranks 2000000"});
  refused("doctor --seconds nan", {"--seconds nan"});
  EXPECT_FALSE(fs::exists("x"));
}

TEST_F(BadInput, JsonIsPrintedByEveryVerbThatStops) {
  const auto parsed = [](const std::string& arguments) {
    const Outcome outcome = shell(command_line(arguments, 0) + " 2>errors");
    EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.output << read_file("errors");
    EXPECT_TRUE(nlohmann::json::accept(outcome.output)) << arguments << "\n" << outcome.output;
    return nlohmann::json::parse(outcome.output, nullptr, false);
  };
  EXPECT_EQ(parsed("explain train.dtype --json")[0]["valid"], "float32, float64, bfloat16");
  EXPECT_GT(parsed("scale --keys --json").size(), 20u);
  EXPECT_EQ(parsed("train run.toml --check --json")["train.steps"], 2);
  EXPECT_EQ(parsed("plan run.toml --print-machine --json")["ranks_per_node"], 64);
  EXPECT_EQ(parsed("plan run.toml --json")["ranks"], 1);
  EXPECT_TRUE(parsed("eval good --json").contains("valid_loss"));
  EXPECT_EQ(parsed("generate good --tokens 2 --json").size(), 1u);
  EXPECT_EQ(parsed("checkpoint ls good --json").size(), 1u);
  EXPECT_TRUE(parsed("doctor --seconds 0 --json").contains("verdicts"));
  EXPECT_GT(parsed("report good -o page.html --json")["bytes"], 1000);
  EXPECT_EQ(parsed("submit run.toml --nodes 1 --ranks-per-node 1 --dry-run --json")["ranks"], 1);
  ASSERT_EQ(shell("echo '65 66' > ids").code, 0);
  EXPECT_EQ(parsed("tokenizer decode ids --json"), "AB");
}

TEST_F(BadInput, Data) {
  refused("train run.toml --set data.train=none.h5", {"none.h5"});
  std::ofstream("empty.h5") << "";
  refused("train run.toml --set data.train=empty.h5", {"empty.h5", "empty"});
  std::ofstream("text.h5") << "this is no HDF5 file, it is a sentence that is long enough to be one";
  refused("train run.toml --set data.train=text.h5", {"text.h5", "HDF5"});
  fs::copy_file("data/train.h5", "cut.h5");
  fs::resize_file("cut.h5", fs::file_size("cut.h5") / 2);
  refused("train run.toml --set data.train=cut.h5", {"cut.h5"});
  refused("train run.toml --set data.seq_len=1000000 --set model.schedule=[0]", {"train.h5", "1000000"});
  ASSERT_EQ(shell("head -c 60000 text.txt > small.txt").code, 0);
  ASSERT_EQ(transmamba("tokenizer train small.txt --vocab 320 --output tok.model").code, 0);
  ASSERT_EQ(transmamba("prepare text.txt --output other --tokenizer tok.model --held-out 0.1").code, 0);
  refused("train run.toml --set data.valid=other/valid.h5", {"another tokenizer"});
  refused("train run.toml --set 'data.validation=[{name = \"books\", path = \"other/valid.h5\"}]'",
          {"validation set books: other/valid.h5", "another tokenizer"});
  refused("eval good --set data.valid= --set 'data.validation=[]'", {"--data is missing"});
  refused(
      "train run.toml --set run.dir=good --set data.train=other/train.h5 --set data.valid=other/valid.h5 --set "
      "model.vocab=320",
      {"another tokenizer"});
  refused("eval good --data other/valid.h5", {"another tokenizer"});
  refused("prepare nothing.txt --output x", {"nothing.txt"});
}

TEST_F(BadInput, Checkpoints) {
  refused("train run.toml --set run.dir=good --set model.dim=64 --set train.steps=3", {"another model", "32", "64"});
  // Without the lease, which names the last attempt that looked.
  const auto files = [] { return shell("find good -type f ! -name 'lease-*' | sort | xargs cksum").output; };
  const std::string before = files();
  for (const std::vector<std::string>& change : std::vector<std::vector<std::string>>{
           {"model.layers=2", "model.layers 4 -> 2"},
           {"model.tied_head=true", "model.tied_head false -> true"},
           {"model.z_gate=false", "model.z_gate true -> false"},
           {"model.rope_theta=500", "model.rope_theta 10000.0 -> 500.0"},
           {"model.schedule=[0]", R"(model.schedule [0, "1/4", "1/2", "1/1"] -> [0])"}}) {
    refused("train run.toml --set run.dir=good --set train.steps=3 --set " + change[0],
            {"another model", change[1], "another run.dir"});
  }
  refused("submit run.toml --nodes 1 --ranks-per-node 1 --set run.dir=good --set model.layers=2",
          {"another model", "model.layers 4 -> 2"});
  EXPECT_EQ(files(), before) << "a run of another model was changed";
  refused("eval good --set model.layers=2", {"another model", "layers.2"});
  refused("checkpoint verify good/checkpoints/step-00000009", {"step-00000009"});
  refused("generate nowhere", {"nowhere"});
  // What cannot be written is not always a full disk.
  fs::remove("good/config.toml"), fs::create_directory("good/config.toml");
  refused("train run.toml --set run.dir=good --set train.steps=3", {"good/config.toml: Is a directory"}, 1);
  // The run is as it was.
  EXPECT_EQ(transmamba("checkpoint verify good/checkpoints/step-00000002").code, 0);
}

}  // namespace
}  // namespace tmamba
