// What a run does when the world around it is not kind: disks that fill up, folders that go away, crash loops; and the
// tools for checkpoints.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <fstream>

#include "kernels/base/clock.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class Keeping : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("keeping");
    prepare_bytes(60000);
  }
  void TearDown() override { leave_test_folder(); }

  static Outcome train(const std::string& more = "") { return transmamba("train run.toml " + more); }

  static Outcome beside(const std::string& script) { return tmamba::beside("train run.toml", 0, script); }
};

TEST_F(Keeping, AsyncAndPlainSavesGiveTheSameFiles) {
  write_config("run.toml", "steps = 9\nglobal_batch = 4\nsample_tokens = 1\n[checkpoint]\nevery = 3\nkeep = 0");
  ASSERT_EQ(train("--set run.dir=a --set checkpoint.async=true").code, 0);
  ASSERT_EQ(train("--set run.dir=b --set checkpoint.async=false").code, 0);
  for (const char* step : {"3", "6", "9"}) {
    const std::string name = std::string("/checkpoints/step-0000000") + step + "/rank-00000.h5";
    EXPECT_EQ(shell("cmp a" + name + " b" + name).code, 0) << step;
  }
}

TEST_F(Keeping, OneWriterPerNodeStoresTheSame) {
  write_config("run.toml", "steps = 4\nglobal_batch = 4\nsample_tokens = 1\n[checkpoint]\nevery = 2\nkeep = 0");
  const auto run = [](const std::string& more) { return transmamba("train run.toml " + more, 2); };
  for (const char* dir : {"rank", "node"}) {
    const Outcome outcome = run(std::string("--set checkpoint.writers=") + dir + " --set run.dir=" + dir);
    ASSERT_EQ(outcome.code, 0) << outcome.output;
  }
  const std::string step = "/checkpoints/step-00000002";
  EXPECT_TRUE(fs::exists("rank" + step + "/rank-00001.h5"));
  EXPECT_FALSE(fs::exists("node" + step + "/rank-00001.h5"));
  EXPECT_EQ(transmamba("checkpoint verify node" + step).code, 0);
  const auto found =
      nlohmann::json::parse(transmamba("checkpoint diff rank" + step + " node" + step + " --json").output);
  EXPECT_TRUE(found.at("tensors").empty()) << found.dump(1);
  // And a run resumes from it.
  fs::remove_all("node/checkpoints/step-00000004"), fs::remove("node/summary.json");
  ASSERT_EQ(run("--set checkpoint.writers=node --set run.dir=node").code, 0);
  EXPECT_EQ(series("node", "loss"), series("rank", "loss"));
}

TEST_F(Keeping, AStopAtTheEndDoesNotStopTheNextAttempt) {
  write_config("run.toml", "steps = 1\nglobal_batch = 2\nsample_tokens = 1\neval_sequences = 1");
  fs::create_directories("run");
  std::ofstream("run/STOP") << "";
  const Outcome outcome = train();
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_FALSE(fs::exists("run/STOP"));
}

TEST_F(Keeping, TheSwitchFilesSaveAndStop) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2\n[checkpoint]\nevery = 0");
  const Outcome outcome = beside(
      "until_ '[ -s run/metrics.jsonl ]'; touch run/SAVE; until_ '[ $(events checkpoint) -ge 1 ]'; "
      "[ -e run/SAVE ] && echo the switch stays; touch run/STOP");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_NE(outcome.output.find("STOP: saved step"), std::string::npos) << outcome.output;
  EXPECT_EQ(outcome.output.find("the switch stays"), std::string::npos) << outcome.output;
  EXPECT_FALSE(fs::exists("run/STOP"));
  EXPECT_EQ(events("checkpoint").size(), 2u);
  EXPECT_EQ(nlohmann::json::parse(transmamba("checkpoint ls run --json").output).size(), 2u);
}

// The disk fills up in the middle of a run, and is made free again.
TEST_F(Keeping, AFullDiskCostsCheckpointsButNotTheRun) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2\n[checkpoint]\nevery = 5");
  const Outcome outcome = beside(
      "until_ '[ $(events checkpoint) -ge 1 ]'; prlimit --fsize=20000: --pid $job; "
      "until_ '[ $(events checkpoint_failed) -ge 2 ]'; before=$(events checkpoint); "
      "ls run/checkpoints | grep tmp && echo left over; prlimit --fsize=unlimited: --pid $job; "
      "until_ '[ $(events checkpoint) -gt $before ]'; touch run/STOP");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_EQ(outcome.output.find("gave up"), std::string::npos) << outcome.output;
  const auto failed = events("checkpoint_failed");
  ASSERT_GE(failed.size(), 2u) << outcome.output;
  EXPECT_NE(failed[0]["problem"].get<std::string>().find("run/checkpoints/step-"), std::string::npos);
  EXPECT_NE(failed[0]["problem"].get<std::string>().find("File too large"), std::string::npos);
  for (const auto& entry : nlohmann::json::parse(transmamba("checkpoint ls run --json").output)) {
    EXPECT_EQ(transmamba("checkpoint verify " + entry["path"].get<std::string>()).code, 0);
  }
  for (const char* file : {"run/metrics.jsonl", "run/events.jsonl"}) {
    std::ifstream in(file);
    for (std::string line; std::getline(in, line);) {
      EXPECT_FALSE(nlohmann::json::parse(line, nullptr, false).is_discarded()) << file << ": " << line;
    }
  }
}

TEST_F(Keeping, ARemovedDirectoryIsRecreated) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2\n[checkpoint]\nevery = 20");
  const Outcome outcome = beside(
      "until_ '[ $(events checkpoint) -ge 1 ]'; "
      "until_ 'rm -rf run/checkpoints; ( set -C; echo x > run/checkpoints ) 2>/dev/null && [ -f run/checkpoints ]'; "
      "until_ '[ $(events checkpoint_failed) -ge 1 ]'; rm run/checkpoints; "
      "until_ '[ -e run/checkpoints/latest ]'; touch run/STOP");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_EQ(outcome.output.find("gave up"), std::string::npos) << outcome.output;
  const auto list = nlohmann::json::parse(transmamba("checkpoint ls run --json").output);
  ASSERT_FALSE(list.empty());
  EXPECT_EQ(transmamba("checkpoint verify " + list.back()["path"].get<std::string>()).code, 0);
}

// A SAVE that meets a full disk is kept, and answered when there is space again.
TEST_F(Keeping, ASaveThatWasAskedForIsTriedAgain) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2\n[checkpoint]\nevery = 0");
  const auto begin = std::chrono::steady_clock::now();
  const Outcome outcome = beside(
      "until_ '[ -s run/metrics.jsonl ]'; prlimit --fsize=20000: --pid $job; touch run/SAVE; "
      "until_ '[ $(events checkpoint_failed) -ge 1 ]'; [ -e run/SAVE ] || echo forgotten; "
      "prlimit --fsize=unlimited: --pid $job; until_ '[ $(events checkpoint) -ge 1 ]'; until_ '[ ! -e run/SAVE ]'; "
      "touch run/STOP");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_EQ(outcome.output.find("gave up"), std::string::npos) << outcome.output;
  EXPECT_EQ(outcome.output.find("forgotten"), std::string::npos) << outcome.output;
  // Retries are 1, 2, 4, ... seconds apart.
  const double retries = static_cast<double>(events("checkpoint_failed").size()) - 1;
  EXPECT_LE(std::exp2(retries) - 1, seconds_since(begin)) << "tried at every step";
}

// The whole run folder is taken away under a run.
TEST_F(Keeping, ARunWhoseDirectoryIsLostWarnsAndContinues) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2\n[checkpoint]\nevery = 0");
  const Outcome outcome = beside(
      "until_ '[ -s run/metrics.jsonl ]'; mv run away; until_ '[ $(events folder_lost) -ge 1 ]'; "
      "until_ '[ -s run/metrics.jsonl ]'; mv run gone; rm -rf gone; until_ '[ -s run/metrics.jsonl ]'; touch run/STOP");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_EQ(outcome.output.find("gave up"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("run directory run, or its logs, was removed or moved"), std::string::npos);
  EXPECT_NE(outcome.output.find("STOP: saved step"), std::string::npos) << outcome.output;
  EXPECT_EQ(events("folder_lost").size(), 1u);
  for (const char* file : {"config.toml", "plan.json", "progress.json", "goodput.json", "checkpoints/latest"}) {
    EXPECT_TRUE(fs::exists(fs::path("run") / file)) << file;
  }
  // From its first line on the new log is whole, and is one of a run.
  const std::vector<double> steps = series("run", "step");
  ASSERT_FALSE(steps.empty());
  EXPECT_EQ(steps.front(), events("folder_lost")[0]["step"].get<double>());
  EXPECT_EQ(steps.back() - steps.front() + 1, static_cast<double>(steps.size()));
  std::ifstream in("run/goodput.json");
  EXPECT_EQ(nlohmann::json::parse(in)["starts"].size(), 1u);
}

// `| tee log` whose terminal is gone: the output is lost, the run is not.
TEST_F(Keeping, ALostReaderOfTheOutputDoesNotEndTheRun) {
  write_config("run.toml", "steps = 3\nglobal_batch = 2\nsample_tokens = 1\neval_sequences = 1");
  ASSERT_EQ(shell("{ " + command_line("train run.toml", 0) + "; echo $? >code; } | exec true").code, 0);
  EXPECT_EQ(read_file("code"), "0\n");
  EXPECT_EQ(series("run", "loss").size(), 3u);
}

// A disk that is full already is found before the first step.
TEST_F(Keeping, TooLittleSpaceIsFoundBeforeTheFirstStep) {
  write_config("run.toml", "steps = 4\nglobal_batch = 2\n[checkpoint]\nevery = 2");
  // MPI needs large files too, but not these.
  const Outcome outcome =
      shell("ulimit -f 65536; " + command_line("train run.toml --set model.dim=256 --set model.ffn=2048", 0));
  EXPECT_EQ(outcome.code, 1) << outcome.output;
  EXPECT_NE(outcome.output.find("run/checkpoints"), std::string::npos) << outcome.output;
  EXPECT_TRUE(series("run", "loss").empty());
}

TEST_F(Keeping, ThreeAttemptsWithoutANewerCheckpointEndWith93) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2\n[checkpoint]\nevery = 0");
  for (int start = 0; start < 3; ++start) {
    const Outcome outcome = beside("until_ '[ -s run/metrics.jsonl ]'; kill -KILL $job");
    EXPECT_EQ(outcome.code, 128 + 9) << outcome.output;
    fs::remove("run/metrics.jsonl");
  }
  const Outcome fourth = train();
  EXPECT_EQ(fourth.code, 93) << fourth.output;
  EXPECT_NE(fourth.output.find("progress.json"), std::string::npos) << fourth.output;
  EXPECT_EQ(events("no_progress").size(), 1u);
  EXPECT_EQ(train().code, 93);
  // Another configuration is another attempt; a run that makes a checkpoint starts counting again.
  ASSERT_EQ(train("--set train.steps=3").code, 0);
  EXPECT_NE(train("--set train.steps=3").code, 93);
}

// Weights alone cannot be trained on: the message says what to do, and starting again and again ends.
TEST_F(Keeping, AttemptsThatCannotLoadCountToo) {
  write_config("run.toml", "steps = 1\nglobal_batch = 2\nsample_tokens = 1\neval_sequences = 1");
  ASSERT_EQ(train("--set run.dir=whole").code, 0);
  ASSERT_EQ(transmamba("checkpoint export whole/checkpoints/step-00000001 w.h5 --weights").code, 0);
  ASSERT_EQ(transmamba("checkpoint import w.h5 run/checkpoints").code, 0);
  for (int start = 0; start < 3; ++start) {
    const Outcome outcome = train();
    EXPECT_EQ(outcome.code, 1) << outcome.output;
    EXPECT_NE(outcome.output.find("without --weights"), std::string::npos) << outcome.output;
  }
  EXPECT_EQ(train().code, 93);
  const auto failed = events("failed");
  ASSERT_EQ(failed.size(), 3u);
  EXPECT_NE(failed[0]["problem"].get<std::string>().find("optim/m/"), std::string::npos) << failed[0];
}

TEST_F(Keeping, ARunWithoutACompleteCheckpointDoesNotRestart) {
  write_config("run.toml",
               "steps = 2\nglobal_batch = 2\nsample_tokens = 1\neval_sequences = 1\n[checkpoint]\nevery = 1");
  ASSERT_EQ(train().code, 0);
  ASSERT_EQ(shell("for f in run/checkpoints/step-*/*.h5; do truncate -s 100 $f; done").code, 0);
  const std::string logged = shell("cksum run/metrics.jsonl").output;
  for (int start = 0; start < 2; ++start) {
    const Outcome outcome = train();
    EXPECT_EQ(outcome.code, 1) << outcome.output;
    for (const char* part : {"none of them can be loaded", "step-00000001.damaged", "step-00000002.damaged",
                             "another run.dir, or remove them"}) {
      EXPECT_NE(outcome.output.find(part), std::string::npos) << part << "\n" << outcome.output;
    }
  }
  EXPECT_EQ(shell("cksum run/metrics.jsonl").output, logged);
  // What was found before there was a log to open is in it.
  const auto damaged = events("damaged");
  ASSERT_EQ(damaged.size(), 2u);
  EXPECT_EQ(damaged[0]["path"], "run/checkpoints/step-00000002");
  EXPECT_NE(damaged[0]["problem"].get<std::string>().find("rank-00000.h5"), std::string::npos) << damaged[0];
  fs::remove_all("run/checkpoints");
  EXPECT_EQ(train().code, 0);
}

TEST_F(Keeping, AutomaticIntervalsSaveByTheirCost) {
  write_config("run.toml",
               "steps = 400\nglobal_batch = 2\nsample_tokens = 1\n[checkpoint]\nevery = \"auto\"\nmtbf_hours = 0.001");
  ASSERT_EQ(train().code, 0);
  const auto saved = events("checkpoint");
  ASSERT_GE(saved.size(), 2u);  // one to learn the cost, and the last
  EXPECT_GE(saved[0]["step"].get<int>(), 10);
  EXPECT_GT(saved[0]["next_in_seconds"].get<double>(), 0);
  EXPECT_GE(saved[0]["stall_seconds"].get<double>(), 0);
  const auto lines = metrics("run");
  EXPECT_TRUE(std::any_of(lines.begin(), lines.end(), [](const auto& line) { return line.contains("save_stall_ms"); }));
}

TEST_F(Keeping, OtherFormsComeBackBitForBit) {
  write_config("run.toml", "steps = 3\nglobal_batch = 2\nsample_tokens = 1\nspike_window = 3");
  ASSERT_EQ(train().code, 0);
  const std::string step = "/step-00000003", a = "run/checkpoints" + step;
  for (const char* file : {"out/m.h5", "out/m.safetensors"}) {
    const std::string back = std::string("back") + fs::path(file).extension().string();
    ASSERT_EQ(transmamba("checkpoint export " + a + " " + file).code, 0);
    ASSERT_EQ(transmamba(std::string("checkpoint import ") + file + " " + back).code, 0);
    const Outcome diff = transmamba("checkpoint diff " + a + " " + back + step);
    EXPECT_EQ(diff.code, 0) << diff.output;
    // Neither is written over.
    EXPECT_EQ(transmamba("checkpoint export " + a + " " + file).code, 2);
    EXPECT_EQ(transmamba(std::string("checkpoint import ") + file + " " + back).code, 2);
  }
  std::ifstream in("out/config.json");
  EXPECT_EQ(nlohmann::json::parse(in)["hidden_size"], 32);
  for (const char* writers : {"1", "2", "7"}) {
    const std::string to = std::string("in") + writers;
    ASSERT_EQ(transmamba("checkpoint reshard " + a + " " + to + " --writers " + writers).code, 0);
    EXPECT_EQ(transmamba("checkpoint diff " + a + " " + to + step).code, 0);
    EXPECT_EQ(transmamba("checkpoint verify " + to + step).code, 0);
    int files = 0;
    for (const auto& entry : fs::directory_iterator(to + step)) files += entry.path().extension() == ".h5";
    EXPECT_EQ(std::to_string(files), writers);
  }
  // A run resumes from an imported one.
  ASSERT_EQ(transmamba("checkpoint import out/m.safetensors again/checkpoints").code, 0);
  const Outcome on = train("--set run.dir=again --set train.steps=5");
  ASSERT_EQ(on.code, 0) << on.output;
  EXPECT_NE(on.output.find("resumed from step 3"), std::string::npos) << on.output;
  EXPECT_EQ(transmamba("checkpoint diff " + a + " again/checkpoints/step-00000005").code, 1);
}

// A head that is the embedding is stored once, and programs that read the export are told so.
TEST_F(Keeping, TiedHeadsAreExportedOnce) {
  write_config("run.toml", "steps = 1\nglobal_batch = 2\nsample_tokens = 1\neval_sequences = 1", "tied_head = true");
  ASSERT_EQ(train().code, 0);
  ASSERT_EQ(transmamba("checkpoint export run out/m.safetensors --weights").code, 0);
  const std::string file = read_file("out/m.safetensors");
  EXPECT_NE(file.find("embedding.weight"), std::string::npos);
  EXPECT_EQ(file.find("head.weight"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(read_file("out/config.json"))["tie_word_embeddings"], true);
  ASSERT_EQ(transmamba("checkpoint import out/m.safetensors back").code, 0);
  const auto loss = [](const std::string& of) {
    return nlohmann::json::parse(transmamba("eval " + of + " --json").output)["valid_loss"];
  };
  EXPECT_EQ(loss("back/step-00000001"), loss("run"));
  const Outcome untied = transmamba("eval back/step-00000001 --set model.tied_head=false");
  EXPECT_EQ(untied.code, 2) << untied.output;
  EXPECT_NE(untied.output.find("head.weight is missing"), std::string::npos) << untied.output;
}

TEST_F(Keeping, PruneKeepsWhatItIsAsked) {
  write_config("run.toml", "steps = 8\nglobal_batch = 2\nsample_tokens = 1\n[checkpoint]\nevery = 1\nkeep = 0");
  ASSERT_EQ(train().code, 0);
  const auto steps = [] {
    std::vector<int> found;
    for (const auto& entry : nlohmann::json::parse(transmamba("checkpoint ls run --json").output)) {
      found.push_back(entry["step"].get<int>());
    }
    return found;
  };
  ASSERT_EQ(steps().size(), 8u);
  EXPECT_EQ(transmamba("checkpoint prune run --keep 2 --keep-every 4 --dry-run").code, 0);
  EXPECT_EQ(steps().size(), 8u);
  EXPECT_EQ(transmamba("checkpoint prune run --keep 2 --keep-every 3").code, 0);
  EXPECT_EQ(steps(), (std::vector<int>{3, 6, 7, 8}));
  EXPECT_EQ(transmamba("checkpoint prune run --keep 0").code, 2);
  EXPECT_EQ(transmamba("checkpoint prune run run").code, 2);
}

}  // namespace
}  // namespace tmamba
