// Jobs of many ranks as a user runs them: the quickstart's model cut along every axis, and what becomes of a job when
// one of its ranks fails or hangs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <vector>

#include "tests/launch/program.h"
#include "tests/source_dir.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class Ranks : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    enter_test_folder("ranks");
    prepare_bytes(60000);
  }
  static void TearDownTestSuite() { leave_test_folder(); }
};

TEST_F(Ranks, QuickstartOnEightRanksGivesTheCurveOfOne) {
  // The quickstart's own model and schedule, on shorter sequences and few steps.
  const std::string options = std::string("train '") + TMAMBA_SOURCE_DIR +
                              "/configs/quickstart.toml' --set data.train=data/train.h5 --set data.valid=data/valid.h5 "
                              "--set data.seq_len=128 --set train.steps=12 --set train.warmup=4 --set "
                              "train.global_batch=4 --set train.sample_tokens=4 --set run.threads=1 ";
  const Outcome one = transmamba(options + "--set run.dir=one");
  ASSERT_EQ(one.code, 0) << one.output;
  const Outcome eight =
      transmamba(options + "--set run.dir=eight --set parallel.tp=2 --set parallel.sp=2 --set parallel.dp=2", 8);
  ASSERT_EQ(eight.code, 0) << eight.output;
  const std::vector<double> loss = series("one", "loss"), cut = series("eight", "loss");
  ASSERT_EQ(loss.size(), 12u);
  ASSERT_EQ(cut.size(), 12u);
  EXPECT_LT(loss.back(), 0.8 * loss.front());  // it learns
  for (size_t i = 0; i < loss.size(); ++i) EXPECT_NEAR(cut[i], loss[i], 1e-4) << "step " << i + 1;
  EXPECT_NEAR(series("eight", "valid_loss").back(), series("one", "valid_loss").back(), 1e-4);
}

// One rank's data are damaged: it throws while the others wait for its gradients.
TEST_F(Ranks, ARankThatThrowsEndsTheJobWithItsMessage) {
  write_config("run.toml", "steps = 1000\nglobal_batch = 4\nmicro_batch = 1");
  fs::copy_file("data/train.h5", "data/damaged.h5", fs::copy_options::overwrite_existing);
  {
    std::fstream file("data/damaged.h5", std::ios::in | std::ios::out | std::ios::binary);
    const auto size = static_cast<std::streamoff>(fs::file_size("data/damaged.h5"));
    file.seekp(size / 4);
    file << std::string(static_cast<size_t>(size / 2), '\xff');
  }
  const Outcome outcome =
      shell(command_line("train run.toml --set run.dir=thrown", 3) + " : -n 1 " +
            command_line("train run.toml --set run.dir=thrown --set data.train=data/damaged.h5", 0));
  EXPECT_NE(outcome.code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("rank 3 on "), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("data/damaged.h5"), std::string::npos) << outcome.output;
  EXPECT_LT(series("thrown", "loss").size(), 1000u);
}

// One rank's process is stopped in the middle of training.
TEST_F(Ranks, ARankThatHangsIsNamedWithItsOperation) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 4\nmicro_batch = 1");
  const Outcome outcome = beside("train run.toml --set run.dir=hung --set parallel.sp=2 --set run.hang_timeout=4", 4,
                                 "run=hung; until_ '[ $(steps) -ge 1 ]'; kill -STOP $(rank 2)");
  EXPECT_EQ(outcome.code, 1) << outcome.output;
  for (const char* part : {"hang: rank ", " timed out after", "  rank 2 on ", ": its process has stopped"}) {
    EXPECT_NE(outcome.output.find(part), std::string::npos) << "does not say: " << part << "\n" << outcome.output;
  }
  for (const char* innocent : {"  rank 0 on ", "  rank 1 on ", "  rank 3 on "}) {
    EXPECT_EQ(outcome.output.find(innocent), std::string::npos) << outcome.output;
  }
  // The operation and the axis that the others wait in.
  const std::vector<std::string> operations{"all_reduce #", "reduce_scatter #", "all_gather #", "send_recv #",
                                            "all_to_all #"};
  EXPECT_TRUE(std::any_of(operations.begin(), operations.end(), [&](const std::string& operation) {
    return outcome.output.find(operation) != std::string::npos;
  })) << outcome.output;
  // The run's events and its report name both, and no process is said to run.
  std::ifstream in("hung/events.jsonl");
  nlohmann::json event;
  for (std::string line; std::getline(in, line);) event = nlohmann::json::parse(line);
  EXPECT_EQ(event.at("event"), "hang");
  EXPECT_EQ(event.at("ranks"), nlohmann::json::array({2}));
  const std::string operation = event.at("operation");
  EXPECT_NE(outcome.output.find(": " + operation + " timed out after"), std::string::npos) << event;
  ASSERT_EQ(transmamba("report hung -o hung.html").code, 0);
  const std::string page = read_file("hung.html");
  EXPECT_NE(page.find("report. hang: rank 2: " + operation.substr(0, operation.find('"'))), std::string::npos);
}

// Ranks that were given different things train nothing: every verb names what differs, and ends with 2.
TEST_F(Ranks, RanksThatDoNotAgreeEndBeforeTheRunBegins) {
  write_config("run.toml", "steps = 3\nglobal_batch = 6\nsample_tokens = 1\neval_sequences = 1");
  const auto differing = [](const std::string& first, const std::string& second) {
    return shell("timeout 60 " + command_line(first, 2) + " : -n 1 " + command_line(second, 0));
  };
  const auto expect_refused = [&](const std::string& first, const std::string& second, const std::string& what) {
    const Outcome outcome = differing(first, second);
    EXPECT_EQ(outcome.code, 2) << second << "\n" << outcome.output;
    EXPECT_NE(outcome.output.find(what), std::string::npos) << second << "\n" << outcome.output;
  };
  const std::string train = "train run.toml --set run.dir=agreed", eval = "eval agreed", bench = "bench step run.toml";
  write_text("other.txt", 60000, 2);
  ASSERT_EQ(transmamba("prepare other.txt --output other --held-out 0.1").code, 0);
  fs::copy("data", "copy", fs::copy_options::recursive);
  expect_refused(train, train + " --set train.steps=9", "\n  train.steps: 3 on ranks 0-1; 9 on rank 2");
  expect_refused(train, train + " --set parallel.sp=2", "\n  parallel.sp: 1 on ranks 0-1; 2 on rank 2");
  expect_refused(train, train + " --set data.train=other/train.h5", "\n  content of data.train: data/train.h5 (");
  expect_refused(train, "train missing.toml", "rank 2: config missing.toml");
  expect_refused(train, "bench step run.toml", "\n  verb: train on ranks 0-1; bench on rank 2");
  EXPECT_FALSE(fs::exists("agreed"));
  // Copies of the same data are the same.
  const Outcome copies = differing(train, train + " --set data.train=copy/train.h5");
  ASSERT_EQ(copies.code, 0) << copies.output;
  expect_refused(eval, eval + " --batch 4", "\n  --batch: 4 on rank 2; not set on the others");
  expect_refused(eval + " --data data/valid.h5", eval + " --data other/valid.h5",
                 "\n  content of validation set valid: ");
  expect_refused("generate agreed --tokens 4", "generate agreed --tokens 5",
                 "\n  --tokens: 4 on ranks 0-1; 5 on rank 2");
  expect_refused(bench, bench + " --set model.dim=64", "\n  model.dim: 32 on ranks 0-1; 64 on rank 2");
  expect_refused("bench comm", "bench comm --max-bytes 9999", "\n  --max-bytes: 9999 on rank 2");
  expect_refused("doctor --seconds 0", "doctor --seconds 1", "\n  --seconds: 0 on ranks 0-1; 1 on rank 2");
  const Outcome variable =
      shell("timeout 60 " + command_line(train, 1) + " : -n 1 env NCCL_ALGO=Tree " + command_line(train, 0));
  EXPECT_EQ(variable.code, 2) << variable.output;
  EXPECT_NE(variable.output.find("\n  NCCL_ALGO: Tree on rank 1; not set on the others"), std::string::npos)
      << variable.output;
}

// The texts do not depend on the number of ranks, and are printed once.
TEST_F(Ranks, GenerateSpreadsItsTexts) {
  write_config("run.toml", "steps = 1\nglobal_batch = 2\nsample_tokens = 1\neval_sequences = 1");
  ASSERT_EQ(transmamba("train run.toml --set run.dir=texts").code, 0);
  const std::string generate = "generate texts --count 3 --tokens 12 --json";
  const Outcome one = transmamba(generate), two = transmamba(generate, 2);
  EXPECT_EQ(one.code, 0) << one.output;
  EXPECT_EQ(nlohmann::json::parse(one.output).size(), 3u);
  EXPECT_EQ(two.output, one.output);
}

// USR1 of mpirun, whose process the run names, gives the ranks all the time that they need; here one is stopped until
// mpirun would long have killed it after TERM.
TEST_F(Ranks, MpirunHandsTheStopOn) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2");
  const Outcome outcome =
      beside("train run.toml --set run.dir=told >told.log 2>&1", 2,
             "run=told; until_ '[ $(steps) -ge 1 ]'; "
             "mpirun=$(sed -n 's/^to save and stop: .* kill -USR1 \\([0-9]*\\);.*/\\1/p' told.log); "
             "kill -STOP $(rank 1); kill -USR1 $mpirun; sleep 2; kill -CONT $(rank 1); "
             "wait $job; code=$?; cat told.log; exit $code");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_NE(outcome.output.find("SIGUSR1: saved step"), std::string::npos) << outcome.output;
  EXPECT_FALSE(series("told", "step").empty());
}

}  // namespace
}  // namespace tmamba
