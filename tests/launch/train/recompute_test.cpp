// train.recompute and run.memory_limit, through the program: the same losses at every level, and runs that do not fit
// are refused before anything is allocated, with a setting that makes them fit.
#include <gtest/gtest.h>

#include <fstream>
#include <regex>

#include "kernels/base/check.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class RecomputeRun : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("recompute");
    prepare_bytes(40000);
    std::ofstream("run.toml") << "[model]\ndim = 64\nheads = 4\nlayers = 8\nffn = 192\nchunk = 16\n"
                                 "schedule = [0, \"1/4\", 200, \"1/1\"]\n"
                                 "[data]\ntrain = \"data/train.h5\"\nseq_len = 256\n"
                                 "[train]\nsteps = 3\nglobal_batch = 4\nsample_tokens = 4\n"
                                 "[run]\ndir = \"run\"\nthreads = 1\n";
  }
  void TearDown() override { leave_test_folder(); }

  static json plan(const std::string& options) {
    const Outcome outcome = transmamba("plan run.toml --json --vocab 256 " + options);
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    return json::parse(outcome.output, nullptr, false);
  }
  static double gib(const json& bytes) { return bytes.get<double>() / (1 << 30); }
};

// With one transport, that is: the planner's choice minds the times of what is computed again.
TEST_F(RecomputeRun, LossesAreTheSameAtEveryLevel) {
  for (const auto& [layout, ranks] :
       {std::pair{"", 1}, {"--set parallel.sp=2 --set parallel.tp=2 --set parallel.transport=head_parallel", 4}}) {
    std::vector<double> losses;
    for (const char* level : {"none", "cheap", "mlp", "all"}) {
      fs::remove_all("run");
      const Outcome outcome = transmamba(str("train run.toml --set train.recompute=", level, " ", layout), ranks);
      ASSERT_EQ(outcome.code, 0) << outcome.output;
      if (losses.empty()) losses = series("run", "loss");
      EXPECT_EQ(series("run", "loss"), losses) << level << " " << layout;
    }
    EXPECT_EQ(losses.size(), 3u);
  }
}

// A limit between what two levels need: the lower is refused with a message that names the higher, with which the run
// trains.
TEST_F(RecomputeRun, ARunThatDoesNotFitIsRefusedWithWhatMakesItFit) {
  for (const auto& [layout, ranks] :
       {std::pair{"--set parallel.dp=1", 1}, {"--set parallel.sp=2 --set parallel.dp=1", 2}}) {
    const double none = gib(plan(layout)["measured_memory"]["total"]),
                 mlp = gib(plan(str(layout, " --set train.recompute=mlp"))["measured_memory"]["total"]);
    const std::string limit = str(layout, " --set run.memory_limit=", 1.01 * mlp);
    ASSERT_LT(1.01 * mlp, none);
    const Outcome refused = transmamba("train run.toml " + limit, ranks);
    EXPECT_EQ(refused.code, 2) << refused.output;
    for (const char* part : {"does not fit: rank ", " needs ", "run.memory_limit allows ", " short", "activations "}) {
      EXPECT_NE(refused.output.find(part), std::string::npos) << part << "\n" << refused.output;
    }
    EXPECT_FALSE(fs::exists("run"));
    std::smatch advice;
    ASSERT_TRUE(std::regex_search(refused.output, advice, std::regex("(train.recompute=[a-z]+) makes it fit")))
        << refused.output;
    EXPECT_EQ(advice[1], "train.recompute=mlp");
    const Outcome taken = transmamba(str("train run.toml ", limit, " --set ", advice[1].str()), ranks);
    EXPECT_EQ(taken.code, 0) << taken.output;
    fs::remove_all("run");
  }
}

TEST_F(RecomputeRun, WithoutALevelThatFitsTheRestIsNamed) {
  const Outcome refused = transmamba("train run.toml --set run.memory_limit=0.001", 1);
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_NE(refused.output.find("raise parallel.sp or parallel.tp"), std::string::npos) << refused.output;
  EXPECT_FALSE(fs::exists("run"));
  // The planner says so too, before there are ranks.
  const json planned = plan("--set run.memory_limit=0.001");
  EXPECT_EQ(planned["fits"], false);
  EXPECT_NE(planned["advice"].get<std::string>().find("train.recompute=all"), std::string::npos);
  EXPECT_EQ(plan("")["fits"], true);
}

}  // namespace
}  // namespace tmamba
