// A run that is stopped, in whatever way and wherever, and started again is the run that was not stopped, to the last
// bit; and it resumes on any other layout.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <random>

#include "tests/launch/program.h"
#include "tests/trials.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

struct Layout {
  std::string options;
  int ranks;
};

std::string layout_options(int tp, int sp, int dp) {
  return "--set parallel.tp=" + std::to_string(tp) + " --set parallel.sp=" + std::to_string(sp) +
         " --set parallel.dp=" + std::to_string(dp);
}

class Resume : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    enter_test_folder("resume");
    prepare_bytes(60000);
  }
  static void TearDownTestSuite() { leave_test_folder(); }

  static Outcome train(const std::string& run, const Layout& layout, const std::string& more = "") {
    return transmamba("train run.toml --set run.dir=" + run + " " + layout.options + " " + more, layout.ranks);
  }

  // Starts a run and does `action` to it when it has logged `lines` steps; $victim is one of its processes.
  static Outcome interrupted(const std::string& run, const Layout& layout, int lines, const std::string& action) {
    const std::string victim = layout.ranks == 0 ? "$job" : "$(rank " + std::to_string(layout.ranks - 1) + ")";
    return beside("train run.toml --set run.dir=" + run + " " + layout.options, layout.ranks,
                  "held; victim=" + victim + "; " + action + "; kill -CONT $held 2>/dev/null", lines);
  }

  static nlohmann::json diff(const std::string& a, const std::string& b) {
    const Outcome outcome = transmamba("checkpoint diff " + a + " " + b + " --json");
    EXPECT_LT(outcome.code, 2) << outcome.output;
    return nlohmann::json::parse(outcome.output);
  }
};

// Layouts of more ranks than CI has cores come last; only longer trials use them.
const std::vector<Layout>& stop_layouts() {
  static const std::vector<Layout> layouts = {
      {"--set parallel.dp=1 ", 0},        {layout_options(2, 1, 1) + " ", 2},
      {layout_options(1, 2, 1) + " ", 2}, {layout_options(1, 1, 2) + " --set parallel.zero=2 ", 2},
      {layout_options(2, 2, 1) + " ", 4}, {layout_options(2, 2, 2) + " --set checkpoint.writers=node ", 8}};
  return layouts;
}
constexpr int kFewTrials = 12;
size_t layouts_used() { return trials(kFewTrials) > kFewTrials ? stop_layouts().size() : 4; }

// Each test runs the trials of one layout.
class ResumeLayout : public Resume, public testing::WithParamInterface<size_t> {};

TEST_P(ResumeLayout, StopsOfEveryKindLoseNoBit) {
  constexpr int kSteps = 40;
  const std::string last = "/checkpoints/step-00000040";
  write_config("run.toml",
               "steps = 40\neval_sequences = 4\nglobal_batch = 4\nmicro_batch = 2\nspike_window = 5\nspike_sigmas = "
               "2.5\nmax_skips = 50\n"
               "sample_tokens = 1\n[checkpoint]\nevery = 6");
  const std::map<std::string, std::string> kinds = {
      {"TERM", "kill -TERM $victim"},
      {"INT", "kill -INT $victim"},
      {"USR1", "kill -USR1 $victim"},
      {"STOP", "touch part/STOP"},
      {"KILL", "kill -KILL $victim"},
      {"SAVE then KILL", "touch part/SAVE; hold SOON; kill -CONT $held; held; kill -KILL $victim"}};
  const Layout& layout = stop_layouts()[GetParam()];
  const std::string whole = "whole";
  fs::remove_all(whole);
  const Outcome uninterrupted = train(whole, layout);
  ASSERT_EQ(uninterrupted.code, 0) << uninterrupted.output;
  const uint64_t seed = trial_seed(77);
  std::mt19937_64 random(seed);
  const int all = trials(kFewTrials);
  for (int trial = 0; trial < all; ++trial) {
    const size_t which = random() % layouts_used();
    const auto kind = std::next(kinds.begin(), static_cast<int>(random() % kinds.size()));
    const int lines = 1 + static_cast<int>(random() % (kSteps - 8));
    if (which != GetParam()) continue;
    SCOPED_TRACE(testing::Message() << "trial " << trial << ", seed " << seed << ": " << kind->first << " after step "
                                    << lines << ", " << layout.options);
    fs::remove_all("part");
    std::string action = kind->second;
    if (const size_t at = action.find("SOON"); at != std::string::npos)
      action.replace(at, 4, std::to_string(lines + 3));
    const Outcome first = interrupted("part", layout, lines, action);
    const bool killed = kind->first.find("KILL") != std::string::npos;
    EXPECT_TRUE(killed ? first.code != 0 && first.code != 2 && first.code != 85 : first.code == 85)
        << first.code << ": " << first.output;
    const Outcome second = train("part", layout);
    ASSERT_EQ(second.code, 0) << second.output;
    for (const char* key : {"step", "loss", "grad_norm", "lr", "tokens", "valid_loss"}) {
      EXPECT_EQ(series("part", key), series(whole, key)) << key;
    }
    // Parameters, moments, the guard's memory, the place in the data; only the seconds it took and the folder differ.
    const nlohmann::json found = diff("part" + last, whole + last);
    EXPECT_TRUE(found.at("tensors").empty()) << found.dump(1);
    for (const nlohmann::json& key : found.at("state")) EXPECT_TRUE(key == "seconds" || key == "config") << key;
  }
}

INSTANTIATE_TEST_SUITE_P(, ResumeLayout, testing::Range<size_t>(0, layouts_used()));

// Saved on each of six layouts, the run resumes on every other.
TEST_F(Resume, EveryLayoutResumesWhereAnotherStopped) {
  const std::vector<Layout> layouts = {{layout_options(2, 2, 2), 8}, {layout_options(1, 8, 1), 8},
                                       {layout_options(4, 1, 2), 8}, {layout_options(1, 1, 1), 0},
                                       {layout_options(2, 4, 1), 8}, {layout_options(1, 2, 3), 6}};
  write_config(
      "run.toml",
      "steps = 4\nglobal_batch = 6\nmicro_batch = 1\ndtype = \"float64\"\nsample_tokens = 1\neval_sequences = 8\n"
      "[checkpoint]\nevery = 2\nkeep = 0",
      "");
  const std::string shape = " --set model.heads=4 --set model.chunk=8 ";
  const Outcome whole = train("uncut", layouts[3], shape);
  ASSERT_EQ(whole.code, 0) << whole.output;
  const std::vector<double> loss = series("uncut", "loss");
  ASSERT_EQ(loss.size(), 4u);
  const int shift = 1 + static_cast<int>(trial_seed(0) % (layouts.size() - 1));
  for (size_t from = 0; from < layouts.size(); ++from) {
    const size_t to = (from + static_cast<size_t>(shift)) % layouts.size();
    SCOPED_TRACE(layouts[from].options + " to " + layouts[to].options);
    fs::remove_all("moved");
    const Outcome saved = train("moved", layouts[from], shape);
    ASSERT_EQ(saved.code, 0) << saved.output;
    fs::remove_all("moved/checkpoints/step-00000004"), fs::remove("moved/summary.json");
    const Outcome outcome = train("moved", layouts[to], shape);
    ASSERT_EQ(outcome.code, 0) << outcome.output;
    EXPECT_NE(outcome.output.find("resumed from step 2"), std::string::npos) << outcome.output;
    const std::vector<double> moved = series("moved", "loss");
    ASSERT_EQ(moved.size(), loss.size());
    for (size_t i = 0; i < loss.size(); ++i) EXPECT_LT(std::abs(moved[i] - loss[i]) / loss[i], 1e-12) << "step " << i;
  }
}

}  // namespace
}  // namespace tmamba
