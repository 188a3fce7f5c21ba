// What commit 47e46e9 wrote still loads: 47e46e9.tar.gz has a run directory that stopped after step 4 of run.toml
// (float64), its token files, and its checkpoint exported as export.safetensors and, weights only, as weights.h5; and
// the checkpoint of step 4 of the same with schedule ["1/1", 0], whose first layer then had SSM parameters too.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/launch/program.h"
#include "tests/source_dir.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

// Losses of 47e46e9: of its own steps 1 to 4, and of 5 to 8 as it resumed the run itself.
const std::vector<double> kLosses{5.566865186096233, 5.546253598709062, 5.515160740853883, 5.499261795445465,
                                  5.501783029520398, 5.48288153479109,  5.477386098866544, 5.467117581926498};
// Of the checkpoint of step 4, and at the end.
constexpr double kValidLoss = 5.500483274420726, kFinalValidLoss = 5.47149958822708;
// Relative; libraries of another machine round otherwise.
constexpr double kTolerance = 1e-9;

class Compat : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("compat");
    const fs::path fixtures = fs::path(TMAMBA_SOURCE_DIR) / "tests/compat";
    fs::copy_file(fixtures / "run.toml", "run.toml");
    ASSERT_EQ(shell("tar xzf '" + (fixtures / "47e46e9.tar.gz").string() + "'").code, 0);
  }
  void TearDown() override { leave_test_folder(); }

  static std::string done(const std::string& arguments, int ranks = 0) {
    const Outcome outcome = transmamba(arguments, ranks);
    EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.output;
    return outcome.output;
  }
  static void expect_valid_loss(const std::string& arguments, int ranks = 0) {
    const std::string output = done("eval " + arguments + " --json", ranks);
    const double loss = nlohmann::json::parse(output.substr(output.find('{')))["valid_loss"].get<double>();
    EXPECT_NEAR(loss, kValidLoss, kTolerance * kValidLoss) << arguments;
  }
};

TEST_F(Compat, RunsResume) {
  for (const auto& [ranks, layout] : {std::pair(0, ""), std::pair(2, ""), std::pair(2, " --set parallel.sp=2")}) {
    fs::remove_all("resumed");
    fs::copy("run", "resumed", fs::copy_options::recursive);
    done(std::string("train run.toml --set run.dir=resumed") + layout, ranks);
    const std::vector<double> losses = series("resumed", "loss"), valid = series("resumed", "valid_loss");
    ASSERT_EQ(losses.size(), kLosses.size()) << ranks << layout;
    for (size_t i = 0; i < losses.size(); ++i) {
      EXPECT_NEAR(losses[i], kLosses[i], kTolerance * kLosses[i]) << "step " << i + 1 << ", ranks " << ranks << layout;
    }
    EXPECT_NEAR(valid.back(), kFinalValidLoss, kTolerance * kFinalValidLoss) << ranks << layout;
    done("report resumed");
    // Both are recorded since then.
    EXPECT_NE(read_file("resumed/events.jsonl").find("\"build\":{"), std::string::npos);
    EXPECT_NE(done("checkpoint inspect resumed").find("written by transmamba "), std::string::npos);
  }
}

TEST_F(Compat, UnusedParametersAreSkipped) {
  const std::vector<double> losses{5.4759066323606, 5.455298692750538, 5.450276458295781, 5.441952229452792};
  constexpr double kLast = 5.445135670317991;
  for (const auto& [ranks, layout] :
       {std::pair(0, ""), std::pair(2, " --set parallel.zero=2"), std::pair(2, " --set parallel.sp=2")}) {
    fs::remove_all("resumed");
    fs::copy("attention", "resumed", fs::copy_options::recursive);
    ASSERT_NE(done("checkpoint inspect resumed").find("layers.0.mixer.A_log"), std::string::npos);
    done(std::string("train run.toml --set run.dir=resumed --set 'model.schedule=[\"1/1\", 0]'") + layout, ranks);
    const std::vector<double> found = series("resumed", "loss");
    ASSERT_EQ(found.size(), losses.size()) << ranks << layout;
    for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(found[i], losses[i], kTolerance * losses[i]) << layout;
    EXPECT_NEAR(series("resumed", "valid_loss").back(), kLast, kTolerance * kLast) << layout;
    const std::string tensors = done("checkpoint inspect resumed");
    EXPECT_EQ(tensors.find("layers.0.mixer.A_log"), std::string::npos) << tensors;
    EXPECT_NE(tensors.find("layers.1.mixer.A_log"), std::string::npos) << tensors;
    EXPECT_FALSE(done("generate resumed --tokens 4").empty());
  }
}

TEST_F(Compat, CheckpointsAreReadByEveryVerb) {
  done("checkpoint verify run");
  done("checkpoint ls run");
  done("checkpoint inspect run");
  expect_valid_loss("run");
  expect_valid_loss("run", 2);
  EXPECT_FALSE(done("generate run --tokens 4").empty());
  done("report run");
}

TEST_F(Compat, ExportsImport) {
  for (const char* file : {"export.safetensors", "weights.h5"}) {
    done(std::string("checkpoint import ") + file + " imported-" + file);
    done(std::string("checkpoint verify imported-") + file);
    expect_valid_loss(std::string("imported-") + file);
  }
}

TEST_F(Compat, ConfigurationsLoad) {
  EXPECT_NE(done("train run.toml --check").find("z_gate = true  # run.toml"), std::string::npos);
  // The saved configuration of the run has every key of that commit.
  EXPECT_NE(done("train run/config.toml --check").find("rope_theta = 10000.0"), std::string::npos);
}

}  // namespace
}  // namespace tmamba
