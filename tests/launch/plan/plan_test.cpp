// Saved plans, through the program: a run uses exactly the plan that `plan --save` writes, and writes it to its
// directory.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "kernels/base/check.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class SavedPlan : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("plan");
    prepare_bytes(40000);
    write_config("run.toml", "steps = 2\nglobal_batch = 4\nmicro_batch = 2\ndtype = \"float64\"");
  }
  void TearDown() override { leave_test_folder(); }

  static std::string contents(const fs::path& file) {
    std::ifstream in(file);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  static void save_plan(const std::string& options) {
    const Outcome outcome = transmamba("plan run.toml --save plan.json " + options);
    ASSERT_EQ(outcome.code, 0) << outcome.output;
  }
  // Expects exit code 2, one message with these parts and no run directory: of training on `ranks` ranks or, with 0, of
  // the plan verb, which reads plans in the same way.
  static void refused(const std::string& options, int ranks, const std::vector<std::string>& parts) {
    const Outcome outcome = transmamba((ranks > 0 ? "train run.toml " : "plan run.toml ") + options, ranks);
    EXPECT_EQ(outcome.code, 2) << options << "\n" << outcome.output;
    for (const std::string& part : parts) {
      EXPECT_NE(outcome.output.find(part), std::string::npos) << options << " does not say: " << part << "\n"
                                                              << outcome.output;
    }
    const size_t first = outcome.output.find("error:");
    EXPECT_EQ(outcome.output.find("error:", first + 1), std::string::npos) << outcome.output;
    EXPECT_FALSE(fs::exists("run"));
    fs::remove_all("run");
  }
};

TEST_F(SavedPlan, IsWhatTheRunUsesAndWritesDown) {
  const std::string layout = "--set parallel.sp=2 --set parallel.dp=1 ";
  save_plan(layout + "--set parallel.transport=gather+sliced --set parallel.fold=2");
  // The run's own choices are the planner's; the saved plan is another.
  const Outcome chosen = transmamba("train run.toml --set run.dir=chosen --set parallel.fold=0 " + layout, 2);
  ASSERT_EQ(chosen.code, 0) << chosen.output;
  EXPECT_NE(contents("chosen/plan.json"), contents("plan.json"));
  const Outcome given =
      transmamba("train run.toml --set run.dir=given --set run.plan=plan.json --set parallel.fold=0 " + layout, 2);
  ASSERT_EQ(given.code, 0) << given.output;
  EXPECT_NE(given.output.find("fold 2: 4 segments; gather+sliced"), std::string::npos) << given.output;
  EXPECT_EQ(contents("given/plan.json"), contents("plan.json"));
  // A run's plan is as good as one from `plan`, and starting again from it changes nothing.
  const Outcome again = transmamba(
      "train run.toml --set run.dir=given --set run.plan=given/plan.json --set train.steps=3 --set parallel.fold=2 " +
          layout,
      2);
  ASSERT_EQ(again.code, 0) << again.output;
  EXPECT_EQ(contents("given/plan.json"), contents("plan.json"));
}

TEST_F(SavedPlan, TheChoiceIsThatOfThePlanVerb) {
  const std::string layout = "--set parallel.sp=2 --set parallel.dp=1 --set parallel.fold=0";
  save_plan(layout);
  const Outcome run = transmamba("train run.toml " + layout, 2);
  ASSERT_EQ(run.code, 0) << run.output;
  EXPECT_EQ(contents("run/plan.json"), contents("plan.json"));
  const json plan = json::parse(contents("plan.json"));
  const Outcome verb = transmamba("plan run.toml --json " + layout);
  ASSERT_EQ(verb.code, 0) << verb.output;
  EXPECT_EQ(json::parse(verb.output)["transports"], plan["transports"]);
  EXPECT_EQ(json::parse(verb.output)["fold"], plan["dims"]["fold"]);
}

TEST_F(SavedPlan, OfAnotherRunIsRefusedWithBothValues) {
  save_plan("--set parallel.sp=2 --set parallel.dp=1");
  const std::string use = "--set run.plan=plan.json --set parallel.sp=2 ";
  refused("--set run.plan=plan.json", 1, {"plan.json", "sp = 2", "this run has 1", "parallel.sp"});
  refused(use, 4, {"plan.json", "dp = 1", "this run has 2", "parallel.dp"});
  refused(use + "--set parallel.fold=2", 0, {"fold = 1", "this run has 2", "parallel.fold"});
  refused(use + "--set train.dtype=float32", 0, {"activation_bytes = 8", "this run has 4", "train.dtype"});
  refused(use + "--set model.schedule=[0,16]", 0, {"transpoints = [0,16,32,64]", "[0,16,0,16]", "model.schedule"});
  refused(use + "--set parallel.transport=gather+sliced", 0, {"parallel.transport", "gather+sliced", "in layer 0"});
}

TEST_F(SavedPlan, DamagedIsRefusedByName) {
  save_plan("--set parallel.sp=2 --set parallel.dp=1 --set parallel.transport=group_cast+all_gather");
  const std::string text = contents("plan.json");
  const auto broken = [&](const std::string& from, const std::string& to, const std::string& part) {
    std::string changed = text;
    const size_t at = changed.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    std::ofstream("broken.json") << changed.replace(at, from.size(), to);
    refused("--set run.plan=broken.json --set parallel.sp=2", 0, {"run.plan = broken.json", part});
  };
  broken("\"version\":3", "\"version\":7", "plan version 7");
  broken("\"halo\",1,", "\"halo\",0,", "plan is wrong");
  broken("\"exchange\":1", "\"exchange\":2", "rank 0 issues exchange 2");
  broken("group_cast+all_gather", "group_cast+sliced", "plan is wrong");
  broken("\"tokens\":64", "\"tokens\":64000000000000", "out of range");
  std::ofstream("cut.json") << text.substr(0, text.size() / 2);
  refused("--set run.plan=cut.json --set parallel.sp=2", 0, {"run.plan = cut.json", "not a plan"});
  refused("--set run.plan=nowhere.json --set parallel.sp=2", 2, {"run.plan = nowhere.json", "cannot read"});
  refused("--set run.plan=data --set parallel.sp=2", 0, {"run.plan = data", "cannot read"});
}

TEST_F(SavedPlan, RanksAndMachinesThatAreNoneAreRefused) {
  refused("--ranks -5", 0, {"--ranks -5"});
  for (const char* name : {"nope", "data", "run.toml"})
    refused(std::string("--machine ") + name, 0, {"--machine", name});
  const Outcome garbage = transmamba("plan run.toml --machine run.toml");
  EXPECT_EQ(garbage.output.find("json.exception"), std::string::npos) << garbage.output;
}

TEST_F(SavedPlan, TransportsThatDoNotFitAreRefused) {
  // Two heads over four ranks.
  refused("--set parallel.sp=4 --set parallel.transport=head_parallel", 4,
          {"parallel.transport = head_parallel", "parallel.sp = 4", "2 heads"});
  refused("--set parallel.transport=ring", 0, {"parallel.transport", "ring", "head_parallel", "auto"});
  refused("--set parallel.keys=gather", 0, {"unknown key parallel.keys", "did you mean "});
  refused("--set parallel.fold=0 --set parallel.sp=8", 8, {"segments", "parallel.sp"});
}

json plan_json(const std::string& options) {
  const Outcome outcome = transmamba("plan run.toml --json " + options);
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  return outcome.code == 0 ? json::parse(outcome.output) : json();
}

// 8 sequences a step and no layout: 64 ranks need tensor- or sequence-parallel ones.
TEST_F(SavedPlan, RanksThatTheOwnLayoutCannotUseAreRankedAllTheSame) {
  const std::string sizes = "--ranks 64 --set train.global_batch=8 --set train.micro_batch=1 --set data.seq_len=4096 ";
  const json plan = plan_json(sizes);
  EXPECT_NE(plan["layout_problem"].get<std::string>().find("train.global_batch = 8"), std::string::npos) << plan;
  ASSERT_FALSE(plan["ranking"].empty());
  const json& best = plan["ranking"].front();
  EXPECT_TRUE(best["fits"].get<bool>());
  for (const char* axis : {"tp", "sp", "dp"}) EXPECT_EQ(plan["layout"][axis], best[axis]) << axis;
  for (const json& layout : plan["ranking"]) {
    EXPECT_EQ(layout["tp"].get<int>() * layout["sp"].get<int>() * layout["dp"].get<int>(), 64);
    EXPECT_EQ(8 % layout["dp"].get<int>(), 0) << layout;
  }
  // The same run with that layout set has no problem.
  std::string layout = sizes;
  for (const char* axis : {"tp", "sp", "dp"}) layout += str("--set parallel.", axis, "=", best[axis].dump(), " ");
  layout += "--set parallel.fold=" + best["fold"].dump();
  EXPECT_EQ(plan_json(layout)["layout_problem"], "");
  EXPECT_EQ(plan_json(layout)["step_s"], plan["step_s"]);
  const Outcome text = transmamba("plan run.toml " + sizes);
  EXPECT_NE(text.output.find("own layout cannot run"), std::string::npos) << text.output;
  // With train.micro_batch = 0 the micro-batch of each layout is its own: all sequences of a rank.
  const json whole = plan_json("--ranks 4 --set train.micro_batch=0 --set train.global_batch=4");
  ASSERT_FALSE(whole["ranking"].empty());
  for (const json& choice : whole["ranking"]) {
    EXPECT_GT(choice["mfu"].get<double>(), 0);
    EXPECT_EQ(4 % choice["dp"].get<int>(), 0);
  }
  const Outcome none = transmamba("plan run.toml --ranks 1024");
  EXPECT_EQ(none.code, 2);
  for (const char* part : {"no layout of 1024 ranks", "train.global_batch = 4", "parallel.tp", "parallel.sp"}) {
    EXPECT_NE(none.output.find(part), std::string::npos) << none.output;
  }
}

TEST_F(SavedPlan, TheWholeRunIsPredicted) {
  const json plan = plan_json("--set train.steps=30 --set parallel.sp=2 --set parallel.dp=2");
  const double seconds = 30 * plan["step_s"].get<double>();
  EXPECT_EQ(plan["run"]["steps"], 30);
  EXPECT_NEAR(plan["run"]["seconds"].get<double>(), seconds, 1e-12 * seconds);
  EXPECT_NEAR(plan["run"]["device_hours"].get<double>(), 4 * seconds / 3600, 1e-12 * seconds);
  // 4 sequences of 64 tokens a step.
  EXPECT_EQ(plan_json("--set train.steps=0 --set train.tokens=2000")["run"]["steps"], 8);
  EXPECT_EQ(plan["network"]["nodes"], 1);
  EXPECT_GT(plan["network"]["inside"]["bandwidth"].get<double>(), 0);
  const Outcome text = transmamba("plan run.toml");
  for (const char* part : {"The whole run: 2 steps", "device hours", "A checkpoint: ", "Network assumed: 1 node"}) {
    EXPECT_NE(text.output.find(part), std::string::npos) << text.output;
  }
  // All ranks together, and the replicas of a parameter, save each tensor once.
  for (const char* layout : {"", "--set parallel.tp=2 --set parallel.sp=2 --set parallel.dp=1 "}) {
    fs::remove_all("run");
    const Outcome run = transmamba(std::string("train run.toml ") + layout, *layout ? 4 : 1);
    ASSERT_EQ(run.code, 0) << run.output;
    const Outcome inspected = transmamba("checkpoint inspect run/checkpoints/step-00000002 --json");
    ASSERT_EQ(inspected.code, 0) << inspected.output;
    int64_t bytes = 0;
    const json checkpoint = json::parse(inspected.output);
    ASSERT_FALSE(checkpoint["tensor_list"].empty());
    for (const json& tensor : checkpoint["tensor_list"]) {
      int64_t elements = 1;
      for (const json& size : tensor["shape"]) elements *= size.get<int64_t>();
      ASSERT_EQ(tensor["dtype"], "float64");
      bytes += 8 * elements;
    }
    EXPECT_EQ(plan_json(layout)["checkpoint_bytes"], bytes);
  }
}

}  // namespace
}  // namespace tmamba
