// Training on two GPUs as a user runs it: every axis beside one GPU, the same bits again, hangs. Fails where there are
// fewer than two.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "kernels/base/check.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLayouts[] = {
    "--set parallel.tp=2",
    "--set parallel.sp=2",
    "--set parallel.sp=2 --set parallel.fold=2 --set parallel.transport=gather+sliced",
    "--set parallel.zero=0",
    "--set parallel.zero=1",
    "--set parallel.zero=2",
};

class CudaRanks : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("cuda-ranks");
    prepare_bytes();
    write_config("run.toml", "steps = 20\nglobal_batch = 4\nmicro_batch = 2");
  }
  void TearDown() override { leave_test_folder(); }

  static std::string arguments(const std::string& run, const std::string& more) {
    return "train run.toml --set run.device=cuda --set run.dir=" + run + " " + more;
  }
  static void train(const std::string& run, const std::string& more, int ranks) {
    const Outcome outcome = transmamba(arguments(run, more), ranks);
    ASSERT_EQ(outcome.code, 0) << more << "\n" << outcome.output;
  }
};

void expect_near(const std::vector<double>& a, const std::vector<double>& b, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  ASSERT_FALSE(a.empty()) << what;
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], tolerance * std::abs(b[i])) << what << ", " << i;
}

TEST_F(CudaRanks, EveryAxisGivesTheCurveOfOneGpu) {
  for (const auto& [dtype, tolerance] : {std::pair("float32", 1e-5), std::pair("bfloat16", 1e-3)}) {
    const std::string type = std::string(" --set train.dtype=") + dtype;
    fs::remove_all("one");
    train("one", type, 0);
    if (HasFatalFailure()) return;
    for (const char* layout : kLayouts) {
      fs::remove_all("two");
      train("two", layout + type, 2);
      if (HasFatalFailure()) return;
      const std::string what = std::string(layout) + " " + dtype;
      expect_near(series("two", "loss"), series("one", "loss"), tolerance, what);
      expect_near(series("two", "valid_loss"), series("one", "valid_loss"), tolerance, what);
    }
  }
}

TEST_F(CudaRanks, SameSeedSameBits) {
  for (const char* layout : {kLayouts[0], kLayouts[1], kLayouts[5]}) {
    for (const char* run : {"a", "b"}) {
      fs::remove_all(run);
      train(run, std::string(layout) + " --set train.dtype=bfloat16", 2);
      if (HasFatalFailure()) return;
    }
    for (const char* key : {"loss", "grad_norm", "valid_loss"}) EXPECT_EQ(series("a", key), series("b", key)) << layout;
  }
}

// Exchanges are recorded with the steps, and counted at each replay.
TEST_F(CudaRanks, RecordedStepsGiveTheSameBits) {
  for (const char* layout : kLayouts) {
    for (const auto& [run, graph] : {std::pair("recorded", "true"), std::pair("issued", "false")}) {
      fs::remove_all(run);
      train(run, str(layout, " --set train.dtype=bfloat16 --set run.profile=comm --set run.graph=", graph), 2);
      if (HasFatalFailure()) return;
      std::ifstream in(std::string(run) + "/summary.json");
      for (const auto& row : nlohmann::json::parse(in)["comm"]["operations"]) {
        EXPECT_EQ(row["ranks_that_differ"], 0) << layout << ", " << run << ": " << row.dump();
      }
    }
    for (const char* key : {"loss", "grad_norm", "valid_loss"}) {
      EXPECT_EQ(series("recorded", key), series("issued", key)) << layout << " " << key;
    }
  }
}

// Saved on one GPU, gone on with on two.
TEST_F(CudaRanks, CheckpointsMoveBetweenLayouts) {
  train("whole", "--set checkpoint.every=10 --set checkpoint.keep=0", 0);
  if (HasFatalFailure()) return;
  for (const char* layout : kLayouts) {
    fs::remove_all("part");
    fs::copy("whole", "part", fs::copy_options::recursive);
    fs::remove_all("part/checkpoints/step-00000020"), fs::remove("part/summary.json");
    train("part", layout, 2);
    if (HasFatalFailure()) return;
    expect_near(series("part", "loss"), series("whole", "loss"), 1e-5, layout);
  }
  const Outcome eval = transmamba("eval whole --json --device cuda", 2);
  ASSERT_EQ(eval.code, 0) << eval.output;
  EXPECT_NEAR(nlohmann::json::parse(eval.output)["valid_loss"].get<double>(), series("whole", "valid_loss").back(),
              1e-5);
}

TEST_F(CudaRanks, MoreRanksThanGpusAreRefused) {
  const Outcome outcome = shell("export CUDA_VISIBLE_DEVICES=0; " + command_line(arguments("run", ""), 2));
  EXPECT_EQ(outcome.code, 2) << outcome.output;
  EXPECT_NE(outcome.output.find("2 ranks for 1 GPU; start at most 1 rank on this host"), std::string::npos)
      << outcome.output;
}

TEST_F(CudaRanks, BenchComm) {
  const Outcome outcome = transmamba("bench comm --device cuda --max-bytes 1048576 --json", 2);
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_EQ(nlohmann::json::parse(outcome.output)["exchanges"].size(), 7u * 6) << outcome.output;
}

// A frozen rank holds up an operation that only the GPU of the other waits for.
TEST_F(CudaRanks, AFrozenRankIsNamed) {
  const Outcome outcome = shell(
      "{ " +
      command_line(arguments("run", "--set parallel.tp=2 --set train.steps=1000000 --set run.hang_timeout=3"), 2) +
      "; echo exit $?; } & for i in $(seq 600); do [ -s run/metrics.jsonl ] && break; sleep 0.1; done; "
      "victim=$(pgrep -f '^[^ ]*/transmamba train .*run.dir=run' | tail -1); kill -STOP $victim; "
      "for i in $(seq 40); do [ -e run/heartbeat/hang-report ] && break; sleep 1; done; sleep 4; "
      "kill -KILL $victim; wait");
  EXPECT_EQ(outcome.output.find("exit 0"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("hang: rank"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("its process has stopped"), std::string::npos) << outcome.output;
}

}  // namespace
}  // namespace tmamba
