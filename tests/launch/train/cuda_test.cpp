// Training on one GPU as a user runs it: beside the CPU, resumed, evaluated, sampled.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class CudaTrain : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("cuda-train");
    prepare_bytes();
  }
  void TearDown() override { leave_test_folder(); }

  static void train(const std::string& run, const std::string& device, const std::string& dtype,
                    const std::string& more = "") {
    const Outcome outcome = transmamba("train run.toml --set run.dir=" + run + " --set run.device=" + device +
                                       " --set train.dtype=" + dtype + " " + more);
    ASSERT_EQ(outcome.code, 0) << outcome.output;
  }

  static double evaluate(const std::string& arguments) {
    const Outcome outcome = transmamba("eval " + arguments + " --json");
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    return outcome.code == 0 ? nlohmann::json::parse(outcome.output)["valid_bits_per_byte"].get<double>()
                             : std::nan("");
  }
};

void expect_near(const std::vector<double>& a, const std::vector<double>& b, double tolerance, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  ASSERT_FALSE(a.empty());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], tolerance * b[i]) << what << " at step " << i + 1;
}

TEST_F(CudaTrain, CurveIsThatOfTheCpu) {
  write_config("run.toml", "steps = 60\nglobal_batch = 4\nmicro_batch = 2");
  train("cpu", "cpu", "float32"), train("single", "cuda", "float32"), train("half", "cuda", "bfloat16");
  if (HasFatalFailure()) return;
  expect_near(series("single", "loss"), series("cpu", "loss"), 1e-3, "float32");
  expect_near(series("half", "loss"), series("cpu", "loss"), 3e-2, "bfloat16");
  EXPECT_LT(series("half", "loss").back(), 0.6 * series("half", "loss").front());
}

TEST_F(CudaTrain, LevelsOfRecomputationTrainAlikeInLessMemory) {
  write_config("run.toml", "steps = 12\nglobal_batch = 4\nmicro_batch = 2");
  double bytes = INFINITY;
  for (const char* level : {"none", "cheap", "mlp", "all"}) {
    train(level, "cuda", "bfloat16", std::string("--set train.recompute=") + level);
    if (HasFatalFailure()) return;
    expect_near(series(level, "loss"), series("none", "loss"), 1e-3, level);
    EXPECT_LT(series(level, "memory_bytes").back(), bytes) << level;
    bytes = series(level, "memory_bytes").back();
  }
}

TEST_F(CudaTrain, ARunThatDoesNotFitTheGpuIsRefused) {
  write_config("run.toml", "steps = 2\nglobal_batch = 65536\nmicro_batch = 65536\ndtype = \"bfloat16\"");
  const Outcome outcome = transmamba(
      "train run.toml --set run.device=cuda --set data.seq_len=256 --set model.dim=256 --set model.ffn=1024");
  EXPECT_EQ(outcome.code, 2) << outcome.output;
  for (const char* part : {"does not fit", "of its GPU are free", "short", "train.recompute=all"})
    EXPECT_NE(outcome.output.find(part), std::string::npos) << part << "\n" << outcome.output;
  EXPECT_FALSE(fs::exists("run"));
}

// Master weights, moments and parameters go through the checkpoint unchanged.
TEST_F(CudaTrain, ResumeIsBitIdentical) {
  for (const char* dtype : {"bfloat16", "float32"}) {
    write_config("run.toml", "steps = 14\nglobal_batch = 4\n[checkpoint]\nevery = 1\nkeep = 0");
    train("whole", "cuda", dtype);
    if (HasFatalFailure()) return;
    fs::copy("whole", "part", fs::copy_options::recursive);
    fs::remove("part/summary.json");
    for (const auto& entry : fs::directory_iterator("part/checkpoints")) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("step-") && std::stoi(name.substr(5)) > 5) fs::remove_all(entry.path());
    }
    train("part", "cuda", dtype);
    for (const char* key : {"loss", "grad_norm", "valid_loss"})
      EXPECT_EQ(series("part", key), series("whole", key)) << dtype << " " << key;
    fs::remove_all("whole"), fs::remove_all("part");
  }
}

// Recorded or not, with several micro-batches, evaluations between (they move memory that steps use), and text.
TEST_F(CudaTrain, RecordedStepsGiveTheSameBits) {
  write_config("run.toml", "steps = 12\nglobal_batch = 6\nmicro_batch = 2\neval_every = 4\nsample_every = 5");
  train("recorded", "cuda", "bfloat16"), train("issued", "cuda", "bfloat16", "--set run.graph=false");
  if (HasFatalFailure()) return;
  for (const char* key : {"loss", "grad_norm", "valid_loss"}) {
    EXPECT_EQ(series("recorded", key), series("issued", key)) << key;
  }
}

TEST_F(CudaTrain, CheckpointsCrossDevices) {
  write_config("run.toml", "steps = 30\nglobal_batch = 4");
  train("run", "cuda", "bfloat16");
  if (HasFatalFailure()) return;
  const double own = series("run", "valid_bits_per_byte").back();
  EXPECT_NEAR(evaluate("run"), own, 1e-4 * own);
  EXPECT_NEAR(evaluate("run --device cpu --set train.dtype=float32"), own, 1e-2 * own);
  // Greedy text is the same from the same float32 weights, but for a tie within rounding.
  const std::string arguments = "generate run --tokens 60 --temperature 0 --set train.dtype=float32 --device ";
  const Outcome gpu = transmamba(arguments + "cuda"), cpu = transmamba(arguments + "cpu");
  ASSERT_EQ(gpu.code, 0) << gpu.output;
  ASSERT_EQ(cpu.code, 0) << cpu.output;
  EXPECT_EQ(gpu.output.substr(0, 20), cpu.output.substr(0, 20));
}

TEST_F(CudaTrain, Bench) {
  for (const char* what : {"step", "ops"}) {
    const Outcome outcome =
        transmamba(std::string("bench ") + what + " --device cuda --set train.dtype=bfloat16 --steps 2 --json");
    ASSERT_EQ(outcome.code, 0) << outcome.output;
    const nlohmann::json result = nlohmann::json::parse(outcome.output);
    EXPECT_FALSE(result.empty()) << outcome.output;
    if (std::string(what) == "step") {
      EXPECT_EQ(result["graph"], true) << outcome.output;
    }
  }
}

// What the first run on a machine measures, later ones use: in their own folder, and in the user's cache.
TEST_F(CudaTrain, KernelChoicesAreMeasuredOnce) {
  ASSERT_EQ(setenv("XDG_CACHE_HOME", (fs::current_path() / "cache").c_str(), 1), 0);
  write_config("run.toml", "steps = 6\nglobal_batch = 4");
  train("first", "cuda", "bfloat16"), train("second", "cuda", "bfloat16");
  train("plain", "cuda", "bfloat16", "--set run.measure_kernels=false");
  if (HasFatalFailure()) return;
  const auto text = [](const fs::path& file) {
    std::ifstream in(file);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string choices = text("first/kernel_choices.txt");
  EXPECT_TRUE(choices.starts_with("cublasLt ")) << choices;
  EXPECT_GT(std::count(choices.begin(), choices.end(), '\n'), 5) << choices;
  EXPECT_EQ(text("second/kernel_choices.txt"), choices);
  EXPECT_EQ(series("second", "loss"), series("first", "loss"));
  EXPECT_FALSE(fs::exists("plain/kernel_choices.txt"));
  int cached = 0;
  for (const auto& entry : fs::directory_iterator("cache/transmamba")) cached += text(entry.path()) == choices;
  EXPECT_EQ(cached, 1);
}

}  // namespace
}  // namespace tmamba
