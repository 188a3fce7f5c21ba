// Training as a user runs it: ranks, resume, signals, damage, full disks.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class Train : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("train");
    prepare_bytes();
  }
  void TearDown() override { leave_test_folder(); }

  static Outcome train(const std::string& more = "", int ranks = 0) {
    return transmamba("train run.toml " + more, ranks);
  }
};

double largest_relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    largest = std::max(largest, std::abs(a[i] - b[i]) / std::abs(b[i]));
  return largest;
}

TEST_F(Train, LossFallsAndTheRunDirectoryIsComplete) {
  write_config(
      "run.toml",
      "steps = 60\nglobal_batch = 4\neval_every = 30\neval_sequences = 8\nsample_every = 30\nsample_tokens = 20");
  const Outcome outcome = train();
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const std::vector<double> loss = series("run", "loss"), valid = series("run", "valid_bits_per_byte");
  ASSERT_EQ(loss.size(), 60u);
  EXPECT_LT(loss.back(), 0.6 * loss.front());
  ASSERT_EQ(valid.size(), 2u);  // at step 30 and at the end
  EXPECT_LT(valid[1], valid[0]);
  for (const char* file : {"config.toml", "events.jsonl", "samples.txt", "summary.json"})
    EXPECT_TRUE(fs::exists(fs::path("run") / file)) << file;
  EXPECT_NE(outcome.output.find("held-out bits/byte"), std::string::npos) << outcome.output;
  EXPECT_TRUE(metrics("run").at(0).at("build").contains("commit"));
  EXPECT_FALSE(metrics("run").at(1).contains("build"));
  // Progress fits a terminal.
  std::istringstream lines(outcome.output);
  int progress = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" bpb ") == std::string::npos) continue;
    ++progress;
    EXPECT_LE(line.size(), 80u) << line;
  }
  EXPECT_GE(progress, 6);
  // A second start finds the run complete and changes no metrics.
  const Outcome again = train();
  EXPECT_EQ(again.code, 0) << again.output;
  EXPECT_NE(again.output.find("are done"), std::string::npos) << again.output;
  EXPECT_EQ(series("run", "loss"), loss);
  // eval of the last checkpoint agrees with the run's own last evaluation.
  const Outcome eval = transmamba("eval run --json");
  ASSERT_EQ(eval.code, 0) << eval.output;
  EXPECT_NEAR(nlohmann::json::parse(eval.output)["valid_bits_per_byte"].get<double>(), valid[1], 1e-5);
}

TEST_F(Train, EveryValidationSetIsEvaluated) {
  write_config("run.toml", "global_batch = 2");
  const Outcome outcome = train(
      "--set train.steps=2 --set train.eval_sequences=8 --set train.eval_every=1 --set 'data.validation=[{name = "
      "\"copy\", path = \"data/valid.h5\"}, {name = \"seen\", path = \"data/train.h5\"}]'");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const std::vector<double> valid = series("run", "valid_loss"), seen = series("run", "valid_loss/seen");
  ASSERT_GE(valid.size(), 2u);
  EXPECT_EQ(series("run", "valid_loss/copy"), valid);
  EXPECT_EQ(series("run", "valid_bits_per_byte/copy"), series("run", "valid_bits_per_byte"));
  EXPECT_EQ(seen.size(), valid.size());
  EXPECT_NE(seen, valid);
  EXPECT_NE(outcome.output.find(": seen: held-out loss "), std::string::npos) << outcome.output;
  const nlohmann::json eval = nlohmann::json::parse(transmamba("eval run --json").output);
  EXPECT_NEAR(eval["valid_loss/seen"].get<double>(), seen.back(), 1e-5);
  EXPECT_NEAR(eval["valid_loss"].get<double>(), valid.back(), 1e-5);
}

// Every token of a validation set counts once, whatever the batch and the ranks; there may be fewer sequences than
// ranks.
TEST_F(Train, EvaluationsDependOnNoBatchAndNoRanks) {
  write_config("run.toml", "steps = 2\nglobal_batch = 2\neval_sequences = 1\nsample_tokens = 1");
  ASSERT_EQ(train().code, 0);
  ASSERT_EQ(shell("head -c 100 text.txt >one.txt").code, 0);
  ASSERT_EQ(transmamba("prepare one.txt --output one --held-out 0").code, 0);
  const auto eval = [](const std::string& options, int ranks = 0) {
    const Outcome outcome = transmamba("eval run --json " + options, ranks);
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    return nlohmann::json::parse(outcome.output);
  };
  for (const auto& [data, large] : {std::pair("data/valid.h5", 250), std::pair("one/train.h5", 3)}) {
    const std::string set = std::string("--data ") + data;
    const nlohmann::json expected = eval(set);
    const int64_t windows = expected["tokens"].get<int64_t>() / 64;
    EXPECT_EQ(expected["tokens"], 64 * windows);
    EXPECT_TRUE(windows % 5 != 0 && windows % large != 0) << windows << " fill the batches below";
    for (const nlohmann::json& other : {eval(set + " --batch " + std::to_string(large)), eval(set + " --batch 5", 3)}) {
      EXPECT_EQ(other["tokens"], expected["tokens"]);
      EXPECT_NEAR(other["valid_loss"].get<double>(), expected["valid_loss"].get<double>(), 1e-6);
    }
  }
}

// A vocabulary rounded up beyond the tokenizer's: after one step every second token drawn from all would be one of
// these.
TEST_F(Train, TokensWithoutTextAreNotDrawn) {
  write_config("run.toml", "steps = 1\nglobal_batch = 2\nsample_tokens = 60", "vocab = 512");
  const Outcome outcome = train();
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_TRUE(fs::exists("run/samples.txt"));
}

TEST_F(Train, TwoRanksGiveTheCurveOfOne) {
  for (const char* zero : {"0", "1", "2"}) {
    write_config("run.toml", "steps = 50\nglobal_batch = 4\nmicro_batch = 1\ndtype = \"float64\"");
    const std::string options = std::string("--set parallel.zero=") + zero;
    ASSERT_EQ(train("--set run.dir=one " + options).code, 0);
    const Outcome two = train("--set run.dir=two " + options, 2);
    ASSERT_EQ(two.code, 0) << two.output;
    EXPECT_LT(largest_relative_difference(series("two", "loss"), series("one", "loss")), 1e-10) << "zero " << zero;
    EXPECT_LT(largest_relative_difference(series("two", "grad_norm"), series("one", "grad_norm")), 1e-8)
        << "zero " << zero;
    fs::remove_all("one"), fs::remove_all("two");
  }
}

TEST_F(Train, EveryAxisGivesTheCurveOfOneRank) {
  write_config("run.toml", "steps = 20\nglobal_batch = 4\nmicro_batch = 2\ndtype = \"float64\"");
  ASSERT_EQ(train("--set run.dir=one").code, 0);
  const std::vector<double> loss = series("one", "loss"), norm = series("one", "grad_norm"),
                            valid = series("one", "valid_loss");
  for (const char* layout : {"--set parallel.tp=2 --set parallel.sp=2",
                             "--set parallel.sp=2 --set parallel.dp=2 --set parallel.fold=2 --set parallel.zero=2",
                             "--set parallel.sp=4 --set parallel.transport=gather+sliced"}) {
    fs::remove_all("many");
    const Outcome many = train(std::string("--set run.dir=many ") + layout, 4);
    ASSERT_EQ(many.code, 0) << many.output;
    EXPECT_LT(largest_relative_difference(series("many", "loss"), loss), 1e-10) << layout;
    EXPECT_LT(largest_relative_difference(series("many", "grad_norm"), norm), 1e-8) << layout;
    EXPECT_LT(largest_relative_difference(series("many", "valid_loss"), valid), 1e-10) << layout;
  }
}

// A checkpoint has no layout: a run saved on one resumes on another.
TEST_F(Train, CheckpointsMoveBetweenLayouts) {
  write_config("run.toml",
               "steps = 8\nglobal_batch = 4\nmicro_batch = 2\ndtype = \"float64\"\n[checkpoint]\nevery = 4\nkeep = 0");
  ASSERT_EQ(train("--set run.dir=whole").code, 0);
  const std::vector<double> loss = series("whole", "loss");
  const std::vector<std::pair<std::string, int>> layouts = {{"--set parallel.tp=2 --set parallel.sp=2", 4},
                                                            {"", 1},
                                                            {"--set parallel.sp=2 --set parallel.fold=2", 2},
                                                            {"--set parallel.tp=2", 4}};
  for (size_t i = 0; i < layouts.size(); ++i) {
    const auto& [save, save_ranks] = layouts[i];
    const auto& [load, load_ranks] = layouts[(i + 1) % layouts.size()];
    fs::remove_all("moved");
    ASSERT_EQ(train("--set run.dir=moved " + save, save_ranks).code, 0);
    fs::remove_all("moved/checkpoints/step-00000008"), fs::remove("moved/summary.json");
    const Outcome resumed = train("--set run.dir=moved " + load, load_ranks);
    ASSERT_EQ(resumed.code, 0) << resumed.output;
    EXPECT_NE(resumed.output.find("resumed from step 4"), std::string::npos) << resumed.output;
    EXPECT_LT(largest_relative_difference(series("moved", "loss"), loss), 1e-12) << save << " to " << load;
  }
}

TEST_F(Train, SameSeedSameBits) {
  write_config("run.toml", "steps = 12\nglobal_batch = 4");
  ASSERT_EQ(train("--set run.dir=a", 2).code, 0);
  ASSERT_EQ(train("--set run.dir=b", 2).code, 0);
  for (const char* key : {"loss", "grad_norm", "valid_loss"}) EXPECT_EQ(series("a", key), series("b", key)) << key;
  ASSERT_EQ(train("--set run.dir=c --set train.seed=43", 2).code, 0);
  EXPECT_NE(series("a", "loss"), series("c", "loss"));
}

// Stopped at any step, by the end of a shorter run's checkpoint interval or by kill -9, a run resumes as if it never
// had; so does one that was resumed already. The text is so short that it is read three times, and batches reach over
// its end.
TEST_F(Train, ResumeIsBitIdentical) {
  ASSERT_EQ(shell("head -c 1400 text.txt >short.txt").code, 0);
  ASSERT_EQ(transmamba("prepare short.txt --output short --held-out 0").code, 0);
  write_config("run.toml", "steps = 14\nglobal_batch = 4\n[checkpoint]\nevery = 1\nkeep = 0");
  const std::string data = " --set data.train=short/train.h5";
  ASSERT_EQ(train("--set run.dir=whole" + data).code, 0);
  fs::copy("whole", "part", fs::copy_options::recursive);
  for (int stop : {1, 9, 13, 5}) {
    // The checkpoint of step `stop` is the latest one, as after a crash right after it; later metrics lines are there.
    fs::remove("part/summary.json");
    for (const auto& entry : fs::directory_iterator("part/checkpoints")) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("step-") && std::stoi(name.substr(5)) > stop) fs::remove_all(entry.path());
    }
    const Outcome outcome = train("--set run.dir=part" + data, stop == 5 ? 2 : 0);  // the last on two ranks
    ASSERT_EQ(outcome.code, 0) << outcome.output;
    EXPECT_NE(outcome.output.find("resumed from step " + std::to_string(stop)), std::string::npos) << outcome.output;
    if (stop == 5) {
      EXPECT_LT(largest_relative_difference(series("part", "loss"), series("whole", "loss")), 1e-4);
      continue;
    }
    for (const char* key : {"step", "loss", "grad_norm", "lr", "tokens", "valid_loss"})
      EXPECT_EQ(series("part", key), series("whole", key)) << key << " stop " << stop;
  }
}

TEST_F(Train, SignalsSaveAndStopWith85) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2");
  for (const char* signal : {"TERM", "INT", "USR1"}) {
    const std::string run = std::string("run-") + signal;
    // The signal goes to one rank alone, after its first steps; both must agree on the step to stop at.
    const Outcome outcome = beside("train run.toml --set run.dir=" + run, 2,
                                   "run=" + run + "; until_ '[ $(steps) -ge 1 ]'; kill -" + signal + " $(rank 1)");
    EXPECT_EQ(outcome.code, 85) << outcome.output;
    EXPECT_NE(outcome.output.find("saved step"), std::string::npos) << outcome.output;
    const std::vector<double> steps = series(run, "step");
    ASSERT_FALSE(steps.empty());
    const Outcome list = transmamba("checkpoint ls " + run + " --json");
    EXPECT_EQ(nlohmann::json::parse(list.output).back()["step"].get<double>(), steps.back()) << list.output;
  }
}

TEST_F(Train, DamagedCheckpointIsSetAsideAndTheOneBeforeUsed) {
  write_config("run.toml", "steps = 8\nglobal_batch = 2\n[checkpoint]\nevery = 2\nkeep = 0");
  ASSERT_EQ(train().code, 0);
  const std::vector<double> loss = series("run", "loss");
  fs::remove("run/summary.json");
  // Flip a byte in the middle of the latest checkpoint's tensors.
  const fs::path file = "run/checkpoints/step-00000008/rank-00000.h5";
  {
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekg(static_cast<std::streamoff>(fs::file_size(file) / 2));
    const char byte = static_cast<char>(bytes.get() ^ 0x40);
    bytes.seekp(static_cast<std::streamoff>(fs::file_size(file) / 2));
    bytes.put(byte);
  }
  const Outcome verify = transmamba("checkpoint verify run/checkpoints/step-00000008");
  EXPECT_EQ(verify.code, 1);
  EXPECT_NE(verify.output.find("layers."), std::string::npos) << "names no tensor: " << verify.output;
  const Outcome outcome = train();
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("damaged"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("resumed from step 6"), std::string::npos) << outcome.output;
  EXPECT_EQ(series("run", "loss"), loss);
}

TEST_F(Train, FullDiskKeepsTheLastCheckpoint) {
  write_config("run.toml", "steps = 4\nglobal_batch = 2\n[checkpoint]\nevery = 2\nkeep = 0");
  const std::string large = "--set model.dim=256 --set model.ffn=2048 --set train.warmup=0";  // checkpoints of 90 MB
  ASSERT_EQ(train(large + " --set train.steps=2").code, 0);
  // A limit on file sizes stands in for a full disk: writes past it fail. It is over what MPI needs for itself.
  const Outcome outcome = shell("trap '' XFSZ; ulimit -f 65536; " + command_line("train run.toml " + large, 0));
  EXPECT_EQ(outcome.code, 1) << outcome.output;
  EXPECT_NE(outcome.output.find("run/checkpoints"), std::string::npos) << outcome.output;
  const Outcome verify = transmamba("checkpoint verify run/checkpoints/step-00000002");
  EXPECT_EQ(verify.code, 0) << verify.output;
  const Outcome list = transmamba("checkpoint ls run --json");
  EXPECT_EQ(nlohmann::json::parse(list.output).size(), 1u) << list.output;
  EXPECT_EQ(train(large).code, 0);
}

TEST_F(Train, WhatChangesTheNumbersIsLoggedOnResume) {
  write_config("run.toml", "steps = 2\nglobal_batch = 2\nsample_tokens = 1\neval_sequences = 1");
  const Outcome first = train();
  ASSERT_EQ(first.code, 0) << first.output;
  const Outcome same = train("--set train.steps=3 --set run.log_every=2");
  ASSERT_EQ(same.code, 0) << same.output;
  EXPECT_NE(same.output.find("resuming; changed: train.steps 2 -> 3\n"), std::string::npos) << same.output;
  const Outcome other = train("--set train.steps=4 --set data.seq_len=32");
  ASSERT_EQ(other.code, 0) << other.output;
  EXPECT_NE(other.output.find("resuming; changed: data.seq_len 64 -> 32, train.steps 3 -> 4\n"), std::string::npos)
      << other.output;
  const Outcome found = shell("grep config_changed run/events.jsonl | tail -n 1");
  const auto keys = nlohmann::json::parse(found.output)["keys"];
  EXPECT_EQ(keys.size(), 2u);
  EXPECT_EQ(keys["data.seq_len"], (nlohmann::json{{"was", "64"}, {"now", "32"}}));
}

}  // namespace
}  // namespace tmamba
