// `transmamba checkpoint` on folders with damage in them, in this process.
#include "launch/checkpoint_tools.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/fs.h"
#include "data/tensor_source.h"
#include "launch/exit_code.h"
#include "launch/run_state.h"
#include "launch/verbs.h"
#include "tests/data/checkpoint_fixture.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

class CheckpointTools : public testing::Test {
 protected:
  struct Said {
    int code;
    std::string text;
  };

  void TearDown() override { testing::internal::GetCapturedStderr(); }
  void SetUp() override { testing::internal::CaptureStderr(); }

  // A checkpoint of a run, made of one rank's file; its bits are a function of `step`.
  fs::path save(int64_t step, const fs::path& folder) {
    auto tensors = sample_tensors(static_cast<uint64_t>(step));
    TensorSource source{.path = "memory", .step = step, .state = {}, .tensors = {}, .read = {}};
    source.state = state_json({.step = step,
                               .tokens = 64 * step,
                               .skipped = 0,
                               .seconds = 1,
                               .config = "[model]\nvocab = 256\ndim = 32\n",
                               .tokenizer_hash = "h",
                               .bytes_per_token = 1,
                               .passed_over = 0,
                               .guard = {}});
    for (const Logical& logical : tensors) source.tensors.push_back({logical.name, logical.dtype, logical.shape});
    source.read = [&](const std::string& name, int64_t row, const Tensor& out) {
      for (Logical& logical : tensors) {
        if (logical.name == name) copy_blocking(out, logical.view().slice(0, row, out.size(0)));
      }
    };
    return write_checkpoint(source, folder, 1);
  }
  fs::path save(int64_t step) { return save(step, run / "checkpoints"); }

  // checkpoint ARGUMENTS, and what it prints.
  static Said checkpoint(const Arguments& arguments) {
    testing::internal::CaptureStdout();
    int code = kBadInput;
    std::string problem;
    try {
      code = checkpoint_verb(arguments);
    } catch (const UserError& error) {
      problem = error.what();
    } catch (const Error& error) {
      code = kFailed, problem = error.what();
    }
    return {code, testing::internal::GetCapturedStdout() + problem};
  }

  std::vector<std::string> steps() const { return names_in(run / "checkpoints"); }

  TempFolder run{TempFolder::memory()};
};

TEST_F(CheckpointTools, PruneKeepsTheNewestThatAreWhole) {
  save(10), save(15), save(17);
  const fs::path cut = save(20), empty = save(25);
  fs::resize_file(cut / "rank-00000.h5", 100);
  fs::resize_file(empty / "manifest.json", 0);
  // One bit, which no size tells.
  const fs::path flipped = run / "checkpoints" / "step-00000017" / "rank-00000.h5";
  std::string bytes = file_text(flipped);
  bytes[bytes.size() / 2] ^= 4;
  put_text(flipped, bytes);
  const auto all = steps();
  const Said shown = checkpoint({"prune", run.path().string(), "--keep", "1", "--dry-run"});
  EXPECT_EQ(shown.code, kDone);
  EXPECT_EQ(steps(), all);
  const Said said = checkpoint({"prune", run.path().string(), "--keep", "1"});
  EXPECT_EQ(said.code, kDone) << said.text;
  for (const fs::path& damaged : {cut, empty, flipped}) EXPECT_THAT(said.text, HasSubstr(damaged.string()));
  EXPECT_THAT(said.text, HasSubstr("1 checkpoints are kept"));
  EXPECT_EQ(steps(), (std::vector<std::string>{"step-00000015", "step-00000017", "step-00000020", "step-00000025"}));
  EXPECT_EQ(newest_checkpoint(run / "checkpoints", {}), run / "checkpoints" / "step-00000015");
}

TEST_F(CheckpointTools, PruneRemovesNothingWhereNothingIsWhole) {
  for (int64_t step : {1, 2, 3}) fs::resize_file(save(step) / "manifest.json", 9);
  const Said said = checkpoint({"prune", run.path().string(), "--keep", "1", "--json"});
  EXPECT_EQ(said.code, kFailed);
  const json result = json::parse(said.text);
  EXPECT_EQ(result["damaged"].size(), 3u);
  EXPECT_EQ(result["removed"], json::array());
  EXPECT_EQ(steps().size(), 3u);
}

TEST_F(CheckpointTools, PruneKeepsStepsForEverBesideTheNewest) {
  for (int64_t step = 1; step <= 6; ++step) save(step);
  EXPECT_EQ(checkpoint({"prune", run.path().string(), "--keep", "2", "--keep-every", "3"}).code, kDone);
  EXPECT_EQ(steps(), (std::vector<std::string>{"step-00000003", "step-00000005", "step-00000006"}));
}

}  // namespace
}  // namespace tmamba
