#include "launch/config/schedule.h"

#include <gtest/gtest.h>

#include "model/optimizer.h"

namespace tmamba {
namespace {

RunConfig config_of(const std::string& train, const std::vector<std::string>& overrides = {}) {
  return parse_config("[data]\nseq_len = 100\n[train]\nlr = 1.0\nmin_lr = 0.1\nglobal_batch = 3\n" + train, "x.toml",
                      overrides);
}

std::string only_warning(const std::string& train, const std::vector<std::string>& overrides = {}) {
  const auto list = Schedule(config_of(train, overrides)).warnings();
  EXPECT_LE(list.size(), 1u) << train;
  return list.empty() ? "" : list.front();
}

// Without a change of batch a step has the rate that it had when schedules counted steps alone, to the last bit.
TEST(Schedule, CountsStepsOrTokensWithTheSameBits) {
  const LearningRate expected{.peak = 1, .min = 0.1, .warmup = 7, .end = 90};
  const Schedule steps(config_of("steps = 90\nwarmup = 7\n"));
  for (const char* tokens : {"tokens = 27000\nwarmup = \"7 steps\"\n", "tokens = 26800\nwarmup = 2100\n",
                             "tokens = 26701\nwarmup = \"2.1e3 tokens\"\n"}) {
    const Schedule schedule(config_of(tokens));
    EXPECT_EQ(schedule.total_steps(), 90) << tokens;
    for (int64_t step = 1; step <= 90; ++step) {
      EXPECT_EQ(schedule.learning_rate(step), expected.at(static_cast<double>(step))) << tokens << step;
      EXPECT_EQ(steps.learning_rate(step), expected.at(static_cast<double>(step))) << step;
    }
  }
}

TEST(Schedule, AmountsHaveUnits) {
  for (const char* warmup : {"10", "\"10 steps\"", "\"3000 tokens\"", "\"3e3tokens\"", "\"10%\"", "\"10.0 %\""}) {
    const Schedule schedule(config_of(std::string("steps = 100\nwarmup = ") + warmup + "\n"));
    EXPECT_DOUBLE_EQ(schedule.learning_rate(5), 0.5) << warmup;
    EXPECT_DOUBLE_EQ(schedule.learning_rate(10), 1) << warmup;
  }
  const Schedule decayed(config_of("steps = 100\nwarmup = 0\ndecay = \"50%\"\n"));
  EXPECT_DOUBLE_EQ(decayed.learning_rate(25), 0.55);
  EXPECT_DOUBLE_EQ(decayed.learning_rate(50), 0.1);
  EXPECT_DOUBLE_EQ(decayed.learning_rate(99), 0.1);
  for (const char* bad : {"-1", "\"5 epochs\"", "\"steps\"", "\"-1 steps\"", "\"nan%\"", "\"\"", "true", "nan"}) {
    EXPECT_THROW(config_of(std::string("warmup = ") + bad), UserError) << bad;
  }
  // The saved text reads back; where steps are the unit of the run, the number alone is saved.
  EXPECT_NE(to_toml(config_of("steps = 9\nwarmup = \"4 steps\"\n")).find("warmup = 4  #"), std::string::npos);
  EXPECT_NE(to_toml(config_of("steps = 9\n")).find("warmup = 100  #"), std::string::npos);
  EXPECT_NE(to_toml(config_of("tokens = 9\nwarmup = \"4 steps\"\n")).find("warmup = \"4 steps\"  #"),
            std::string::npos);
}

// 10 steps of 300 tokens, then the batch changes to 600: 3000 tokens stay 10 steps.
TEST(Schedule, AChangeOfBatchRescalesNothingThatIsDone) {
  const std::vector<BatchChange> changes{{10, 3000}};
  RunConfig tokens = config_of("tokens = 30000\nwarmup = \"10 steps\"\n");
  const Schedule before(tokens);
  tokens.train.global_batch = 6;
  const Schedule after(tokens, changes);
  EXPECT_EQ(after.total_steps(), 10 + 27000 / 600);
  EXPECT_DOUBLE_EQ(after.learning_rate(10), before.learning_rate(10));
  // Steps 11 and 30, of 600 tokens, end where steps 12 and 50 of 300 did.
  EXPECT_DOUBLE_EQ(after.learning_rate(11), before.learning_rate(12));
  EXPECT_DOUBLE_EQ(after.learning_rate(30), before.learning_rate(50));
  EXPECT_DOUBLE_EQ(after.learning_rate(after.total_steps()), 0.1);
  RunConfig steps = config_of("steps = 100\nwarmup = \"6000 tokens\"\n");
  EXPECT_DOUBLE_EQ(Schedule(steps).learning_rate(20), 1);
  steps.train.global_batch = 6;
  EXPECT_DOUBLE_EQ(Schedule(steps, changes).learning_rate(15), 1);  // 3000 + 5 * 600
  EXPECT_DOUBLE_EQ(Schedule(steps, changes).learning_rate(100), 0.1);
}

TEST(Schedule, OddSchedulesWarn) {
  EXPECT_EQ(only_warning("steps = 400\n"), "");
  EXPECT_EQ(only_warning("steps = 101\n"), "");
  EXPECT_NE(only_warning("steps = 50\n").find("train.warmup = 100 is longer than the run (train.steps = 50)"),
            std::string::npos);
  EXPECT_NE(only_warning("tokens = 3000\n").find("train.warmup = 100 steps is longer"), std::string::npos);
  EXPECT_NE(only_warning("tokens = 3000\nwarmup = 100\n").find("counts tokens"), std::string::npos);
  EXPECT_NE(only_warning("steps = 50\nwarmup = 0\n", {"train.lr=0.05"}).find("min_lr = 0.1 is above train.lr = 0.05"),
            std::string::npos);
  EXPECT_NE(only_warning("steps = 50\nwarmup = 0\ndecay = 60\n").find("ends after the run"), std::string::npos);
  EXPECT_NE(only_warning("steps = 50\nwarmup = 20\ndecay = 10\n").find("without a decay"), std::string::npos);
}

}  // namespace
}  // namespace tmamba
