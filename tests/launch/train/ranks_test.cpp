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
  static void TearDownTestSuite() {
    const fs::path folder = fs::current_path();
    fs::current_path("/");
    fs::remove_all(folder);
  }
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
