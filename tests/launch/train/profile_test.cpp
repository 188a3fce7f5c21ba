// What the program counts between ranks is what its plan says, to the byte, for every axis, layout and transport.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class Profile : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    enter_test_folder("profile");
    prepare_bytes(40000);
    std::ofstream("run.toml")
        << "[model]\ndim = 32\nheads = 4\nlayers = 4\nffn = 48\nchunk = 4\nschedule = [0, \"1/4\", 19, \"1/1\"]\n"
           "[data]\ntrain = \"data/train.h5\"\nvalid = \"data/valid.h5\"\nseq_len = 64\n"
           "[train]\nsteps = 5\nglobal_batch = 4\nmicro_batch = 1\neval_every = 2\nsample_tokens = 4\n"
           "[checkpoint]\nevery = 2\n[run]\ndir = \"run\"\nthreads = 1\nprofile = \"comm\"\n";
  }
  static void TearDownTestSuite() { leave_test_folder(); }
  void SetUp() override { fs::remove_all("run"); }

  // The comm part of a run's summary, as --json prints it after the progress lines.
  static json profile_of(const std::string& options, int ranks) {
    const Outcome outcome = transmamba("train run.toml --json " + options, ranks);
    EXPECT_EQ(outcome.code, 0) << options << "\n" << outcome.output;
    std::ifstream in("run/summary.json");
    const json summary = json::parse(in, nullptr, false);
    EXPECT_TRUE(summary.contains("comm")) << outcome.output;
    return summary.value("comm", json::object());
  }

  static void expect_as_planned(const json& comm, const std::vector<std::string>& axes) {
    EXPECT_EQ(comm["steps"], 5);
    std::vector<std::string> seen;
    for (const json& row : comm["operations"]) {
      SCOPED_TRACE(row.dump());
      const std::string axis = row["axis"];
      if (seen.empty() || seen.back() != axis) seen.push_back(axis);
      EXPECT_EQ(row["calls"], row["planned_calls"]);
      EXPECT_EQ(row["bytes"], row["planned_bytes"]);
      EXPECT_EQ(row["largest_bytes"], row["planned_largest_bytes"]);
      EXPECT_EQ(row["ranks_that_differ"], 0);
      EXPECT_GT(row["bytes"].get<double>(), 0);
    }
    EXPECT_EQ(seen, axes);
  }
};

struct Case {
  const char* options;
  int ranks;
  std::vector<std::string> axes;
};

TEST_F(Profile, CountedBytesArePlannedBytes) {
  const Case cases[] = {
      {"--set parallel.tp=2 --set parallel.sp=2", 8, {"tp", "sp", "zero", "world"}},
      {"--set parallel.tp=2 --set parallel.sp=2 --set parallel.transport=gather+sliced --set parallel.zero=2",
       8,
       {"tp", "sp", "zero", "world"}},
      {"--set parallel.sp=4 --set parallel.fold=2", 4, {"sp", "zero", "world"}},
      {"--set parallel.sp=4 --set parallel.fold=2 --set parallel.transport=group_cast+sliced --set parallel.zero=0",
       4,
       {"sp", "zero", "world"}},
      {"--set parallel.sp=4 --set parallel.transport=head_parallel --set train.micro_batch=2",
       4,
       {"sp", "zero", "world"}},
      {"--set parallel.sp=4 --set parallel.transport=head_parallel --set train.recompute=all",
       4,
       {"sp", "zero", "world"}},
      {"--set parallel.tp=2 --set parallel.sp=2 --set train.recompute=all", 4, {"tp", "sp", "zero", "world"}},
      {"--set parallel.tp=2 --set train.recompute=cheap", 2, {"tp", "world"}},
      {"--set parallel.sp=8", 8, {"sp", "zero", "world"}},
      {"--set parallel.sp=3 --set parallel.transport=gather+all_gather --set train.dtype=float64",
       3,
       {"sp", "zero", "world"}},
      {"--set parallel.tp=2 --set model.tied_head=true", 2, {"tp", "world"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.options);
    fs::remove_all("run");
    expect_as_planned(profile_of(c.options, c.ranks), c.axes);
  }
}

// The sequence axis by another route: the largest rank's bytes are those that summing the saved plan's messages gives.
TEST_F(Profile, TheSequenceAxisIsTheSavedPlan) {
  const json comm = profile_of("--set parallel.sp=4 --set parallel.fold=0", 4);
  std::ifstream in("run/plan.json");
  const json plan = json::parse(in);
  int64_t planned = 0, counted = 0;
  for (const json& program : plan["programs"]) {
    for (const json& step : program) {
      for (const json& message : step["receives"]) planned += message.at(5).get<int64_t>();
    }
  }
  for (const json& row : comm["operations"]) {
    if (row["axis"] == "sp") counted += row["bytes"].get<int64_t>();
  }
  EXPECT_EQ(counted, 4 * planned);  // four micro-batches a step
}

TEST_F(Profile, IsPrintedAsATable) {
  const Outcome outcome = transmamba("train run.toml --set parallel.sp=2", 2);
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("axis  operation"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("Calls and bytes of every rank equal the plan."), std::string::npos);
}

TEST_F(Profile, TimesOfOps) {
  const Outcome outcome = transmamba("train run.toml --set run.profile=ops");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  std::ifstream in("run/summary.json");
  const json summary = json::parse(in);
  double milliseconds = 0, calls = 0;
  for (const json& row : summary["ops"]) {
    milliseconds += row["ms"].get<double>();
    if (row["op"] == "adamw") calls = row["calls"].get<double>();
  }
  EXPECT_EQ(calls, 1);
  EXPECT_GT(milliseconds, 0);
  EXPECT_LE(milliseconds / 1e3 * 5, summary["seconds"].get<double>());
  EXPECT_NE(outcome.output.find("linear_backward_weight"), std::string::npos) << outcome.output;
}

}  // namespace
}  // namespace tmamba
