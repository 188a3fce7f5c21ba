// `transmamba checkpoint` on folders with damage in them, in this process.
#include "launch/state/checkpoint_tools.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/checkpoint/manifest.h"
#include "data/checkpoint/safetensors.h"
#include "data/checkpoint/tensor_source.h"
#include "data/io/crc32c.h"
#include "data/io/fs.h"
#include "launch/cli/exit_code.h"
#include "launch/state/run_state.h"
#include "launch/verbs.h"
#include "tests/data/checkpoint/checkpoint_fixture.h"

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
                               .config = "[model]\nvocab = 256\ndim = 32\nschedule = [0]\n",
                               .tokenizer_hash = "h",
                               .bytes_per_token = 1,
                               .skipped_sequences = 0,
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

TEST_F(CheckpointTools, PruneKeepsTheLatestCompleteOnes) {
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
  EXPECT_EQ(latest_checkpoint(run / "checkpoints", {}), run / "checkpoints" / "step-00000015");
}

TEST_F(CheckpointTools, PruneRemovesNothingWithoutACompleteCheckpoint) {
  for (int64_t step : {1, 2, 3}) fs::resize_file(save(step) / "manifest.json", 9);
  const Said said = checkpoint({"prune", run.path().string(), "--keep", "1", "--json"});
  EXPECT_EQ(said.code, kFailed);
  const json result = json::parse(said.text);
  EXPECT_EQ(result["damaged"].size(), 3u);
  EXPECT_EQ(result["removed"], json::array());
  EXPECT_EQ(steps().size(), 3u);
}

TEST_F(CheckpointTools, PruneKeepsEveryNthBesideTheLatest) {
  for (int64_t step = 1; step <= 6; ++step) save(step);
  EXPECT_EQ(checkpoint({"prune", run.path().string(), "--keep", "2", "--keep-every", "3"}).code, kDone);
  EXPECT_EQ(steps(), (std::vector<std::string>{"step-00000003", "step-00000005", "step-00000006"}));
}

// One bit in one tensor, in the state, in a checksum: nothing of it is imported.
TEST_F(CheckpointTools, DamagedExportsAreNotImported) {
  const fs::path from = save(5);
  const std::string q = "model/layers.0.mixer.q.weight";
  Logical tensor(q, DType::bf16, {24, 24}, 5);
  for (const char* ending : {".h5", ".safetensors"}) {
    const fs::path file = run / (std::string("m") + ending), bad = run / (std::string("bad") + ending);
    const Said exported = checkpoint({"export", from.string(), file.string()});
    ASSERT_EQ(exported.code, kDone) << exported.text;
    const std::string good = file_text(file);
    const auto flipped = [&](const std::string& part) {
      std::string bytes = good;
      const size_t at = bytes.find(part);
      EXPECT_NE(at, std::string::npos) << part;
      bytes[at + part.size() - 1] ^= 1;
      put_text(bad, bytes);
      return checkpoint({"import", bad.string(), (run / "to").string()});
    };
    const Said in_tensor = flipped(std::string(tensor.bytes.begin(), tensor.bytes.begin() + 99));
    EXPECT_EQ(in_tensor.code, kFailed) << ending;
    EXPECT_THAT(in_tensor.text, HasSubstr(str(bad.string(), ": tensor ", q, ": its bytes have CRC32C")));
    const std::string sum = hex8(crc32c(0, tensor.bytes.data(), tensor.bytes.size()));
    for (const std::string& part : {sum, std::string("dim = 32")}) {
      const Said said = flipped(part);
      EXPECT_EQ(said.code, kFailed) << ending << " " << part;
      EXPECT_THAT(said.text, HasSubstr(bad.string()));
    }
    EXPECT_TRUE(list_checkpoints(run / "to").empty());
    EXPECT_EQ(checkpoint({"import", file.string(), (run / "to").string()}).code, kDone);
    EXPECT_EQ(checkpoint({"diff", from.string(), (run / "to" / "step-00000005").string()}).code, kDone);
    fs::remove_all(run / "to");
  }
}

// Files without checksums are those of the first version, or another program's.
TEST_F(CheckpointTools, ExportsWithoutChecksumsAreImportedWithAWarning) {
  const fs::path from = save(5), file = run / "old.safetensors", to = run / "to";
  const CheckpointReader reader(from);
  const auto header = safetensors_header({{"norm.weight", DType::f32, {2}}},
                                         {{"transmamba.step", "5"}, {"transmamba.state", reader.state().dump()}});
  put_text(file, header.bytes + "12345678");
  const Said said = checkpoint({"import", file.string(), to.string(), "--json"});
  ASSERT_EQ(said.code, kDone) << said.text;
  EXPECT_EQ(json::parse(said.text)["checked"], false);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("old.safetensors: has no checksums"));
  testing::internal::CaptureStderr();
}

TEST_F(CheckpointTools, ExportWritesOverNothing) {
  const std::string from = save(5).string();
  const auto exported = [&](const std::string& name) { return checkpoint({"export", from, (run / name).string()}); };
  ASSERT_EQ(exported("a.h5").code, kDone);
  EXPECT_EQ(exported("a.safetensors").code, kDone);  // with the same configuration
  put_text(run / "config.json", "{}\n");
  const Said said = exported("b.h5");
  EXPECT_EQ(said.code, kBadInput);
  EXPECT_THAT(said.text, HasSubstr((run / "config.json").string()));
  EXPECT_EQ(file_text(run / "config.json"), "{}\n");
  EXPECT_EQ(names_in(run.path()), (std::vector<std::string>{"a.h5", "a.safetensors", "checkpoints", "config.json"}));
}

TEST_F(CheckpointTools, LsShowsTheDamagedAmongTheOthers) {
  save(5), save(15);
  const fs::path empty = save(10);
  EXPECT_EQ(checkpoint({"ls", run.path().string()}).code, kDone);
  fs::resize_file(empty / "manifest.json", 0);
  const Said said = checkpoint({"ls", run.path().string()});
  EXPECT_EQ(said.code, kFailed);
  EXPECT_EQ(std::count(said.text.begin(), said.text.end(), '\n'), 3);
  EXPECT_THAT(said.text, HasSubstr("step 10         DAMAGED: " + (empty / "manifest.json").string() + ": "));
  const json listed = json::parse(checkpoint({"ls", run.path().string(), "--json"}).text);
  ASSERT_EQ(listed.size(), 3u);
  for (const json& entry : listed) EXPECT_EQ(entry["damaged"], entry["step"] == 10);
}

TEST_F(CheckpointTools, RunDirectoriesMeanTheirLatestCheckpoint) {
  const fs::path old = save(5), newest = save(10), latest = run / "checkpoints" / "latest";
  put_text(latest, "step-00000010\n");
  for (const fs::path& path : {run.path(), run / "checkpoints", latest, newest, newest / ""}) {
    EXPECT_EQ(json::parse(checkpoint({"inspect", path.string(), "--json"}).text)["step"], 10) << path;
    EXPECT_EQ(checkpoint({"verify", path.string()}).code, kDone) << path;
    EXPECT_EQ(checkpoint({"diff", newest.string(), path.string()}).code, kDone) << path;
  }
  EXPECT_EQ(checkpoint({"export", run.path().string(), (run / "a.h5").string(), "--weights"}).code, kDone);
  put_text(latest, "../x\n");
  EXPECT_THAT(checkpoint({"verify", latest.string()}).text, HasSubstr("does not contain the name"));
  EXPECT_EQ(checkpoint({"verify", (run / "a.h5").string()}).code, kBadInput);
  // One checkpoint is a list of one, and has the size that a save tells: that of its files.
  const json listed = json::parse(checkpoint({"ls", old.string(), "--json"}).text);
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_EQ(listed[0]["bytes"], fs::file_size(old / "rank-00000.h5"));
}

TEST_F(CheckpointTools, SwappedFoldersAreFound) {
  const fs::path a = save(5), b = save(10), aside = run / "aside";
  fs::rename(a, aside), fs::rename(b, a), fs::rename(aside, b);
  for (const fs::path& path : {a, b, a / ""}) {
    const Said said = checkpoint({"verify", path.string()});
    EXPECT_EQ(said.code, kFailed) << path;
    EXPECT_THAT(said.text, HasSubstr("the manifest is of step"));
  }
  EXPECT_EQ(checkpoint({"ls", run.path().string()}).code, kFailed);
}

TEST_F(CheckpointTools, StudiesAreNotStartedByALauncher) {
  ASSERT_EQ(setenv("OMPI_COMM_WORLD_RANK", "1", 1), 0);
  const std::string refused = thrown<UserError>([&] { scale_verb({run.path().string()}); });
  unsetenv("OMPI_COMM_WORLD_RANK");
  EXPECT_THAT(refused, HasSubstr("outside mpirun"));
}

}  // namespace
}  // namespace tmamba
