// Saves that end half-way: killed at random instants, killed and failed at every single system call, and out of space.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <set>
#include <thread>

#include "data/checkpoint/tensor_source.h"
#include "data/io/fs.h"
#include "dist/comm/self_communicator.h"
#include "tests/data/checkpoint/checkpoint_fixture.h"
#include "tests/data/checkpoint/syscall_tracer.h"
#include "tests/data/temp_folder.h"
#include "tests/trials.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kSaved = 0, kThrew = 3, kWarned = 4, kBadMessage = 5;

// The tensors of a step; `variant` tells two saves of one step apart.
std::vector<Logical> tensors_of(int64_t step, int64_t rows, uint64_t variant = 0) {
  const uint64_t seed = static_cast<uint64_t>(step) * 10 + variant;
  std::vector<Logical> out;
  out.emplace_back("model/w", DType::f32, std::vector<int64_t>{rows, 16}, seed);
  out.emplace_back("optim/m/w", DType::bf16, std::vector<int64_t>{rows}, seed);
  return out;
}

SaveReport save(const fs::path& folder, int64_t step, int64_t rows, const SaveOptions& options, uint64_t variant = 0) {
  SelfCommunicator self("self");
  auto tensors = tensors_of(step, rows, variant);
  return save_checkpoint(self, folder, step, deal(tensors, 2, 1), {{"step", step}}, options);
}

bool holds(const fs::path& path, int64_t step, int64_t rows, uint64_t variant = 0) {
  const CheckpointReader reader(path);
  for (const Logical& tensor : tensors_of(step, rows, variant)) {
    if (read_whole(reader, tensor) != tensor.bytes) return false;
  }
  return reader.step() == step && reader.verify().empty();
}

void never(const fs::path& path, const std::string& problem) { ADD_FAILURE() << path << ": " << problem; }

bool any_left_over(const fs::path& folder) {
  for (const std::string& name : names_in(folder)) {
    if (name.find(".tmp-") != std::string::npos || name.find(".old-") != std::string::npos) return true;
  }
  return false;
}

TEST(Crash, KilledAtRandomInstantsLeavesTheLastCompleteOne) {
  const uint64_t seed = trial_seed(21);
  constexpr int64_t kRows = 20000;
  const int kills = trials(50);
  std::mt19937_64 random(seed);
  TempFolder folder;
  save(folder.path(), 1, kRows, {.keep = 2});
  const double save_seconds = save(folder.path(), 2, kRows, {.keep = 2}).seconds;
  int64_t latest = 2;
  int half_way = 0;
  for (int kill_number = 0; kill_number < kills; ++kill_number) {
    SCOPED_TRACE(testing::Message() << "kill " << kill_number << ", seed " << seed);
    int saved[2];
    ASSERT_EQ(pipe(saved), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int64_t step = latest + 1;; ++step) {
        save(folder.path(), step, kRows, {.keep = 2});
        if (write(saved[1], "+", 1) != 1) _exit(1);
      }
    }
    close(saved[1]);
    // Every other kill comes in the first save, the others in the one after it.
    char byte = 0;
    if (kill_number % 2 == 1) {
      ASSERT_EQ(read(saved[0], &byte, 1), 1);
    }
    std::this_thread::sleep_for(
        std::chrono::duration<double>(save_seconds * static_cast<double>(random() % 1000) * 1e-3));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    close(saved[0]);
    half_way += any_left_over(folder.path());
    const auto found = latest_checkpoint(folder.path(), never);
    ASSERT_TRUE(found);
    const int64_t step = CheckpointReader(*found).step();
    EXPECT_GE(step, latest);
    latest = step;
    for (const fs::path& path : list_checkpoints(folder.path())) {
      EXPECT_TRUE(holds(path, CheckpointReader(path).step(), kRows)) << path;
    }
  }
  EXPECT_GE(half_way, kills / 8) << "too few kills came in the middle of a save";
  EXPECT_GE(latest, 2 + kills / 2);
  save(folder.path(), latest + 1, kRows, {.keep = 2});
  EXPECT_FALSE(any_left_over(folder.path()));
}

// What is there before: steps 1 and 2. `step` 3 adds one and removes the first; `step` 2 replaces one.
class EveryCall : public testing::TestWithParam<int64_t> {
 protected:
  static constexpr int64_t kRows = 10;

  EveryCall() {
    save(folder / "before", 1, kRows, {.keep = 2});
    save(folder / "before", 2, kRows, {.keep = 2});
  }

  // Saves in a child; the calls go to a fresh copy of what was there before.
  TraceResult save_traced(const TraceOptions& options) {
    fs::remove_all(now);
    fs::copy(folder / "before", now, fs::copy_options::recursive);
    return trace(
        [&] {
          try {
            return save(now, GetParam(), kRows, {.keep = 2}, 1).warnings.empty() ? kSaved : kWarned;
          } catch (const Error& error) {
            const std::string message = error.what();
            const bool clear = message.find("No space left on device") != std::string::npos &&
                               message.find(now.string()) != std::string::npos;
            if (!clear) std::fprintf(stderr, "unclear message: %s\n", error.what());
            return clear ? kThrew : kBadMessage;
          }
        },
        options);
  }

  bool new_one_is_whole() const { return holds(now / names.at(GetParam()), GetParam(), kRows, 1); }

  // Of two states, all or nothing: the save happened, or it did not.
  void expect_old_or_new() const {
    const auto found = latest_checkpoint(now, never);
    ASSERT_TRUE(found);
    if (GetParam() == 2) {
      EXPECT_TRUE(holds(*found, 2, kRows, 0) || holds(*found, 2, kRows, 1));
    } else {
      EXPECT_TRUE(*found == now / names.at(2) ? holds(*found, 2, kRows) : new_one_is_whole());
    }
    for (const fs::path& path : list_checkpoints(now)) EXPECT_THAT(CheckpointReader(path).verify(), IsEmpty());
    save(now, 4, kRows, {.keep = 0});
    EXPECT_TRUE(holds(now / names.at(4), 4, kRows));
    EXPECT_FALSE(any_left_over(now));
  }

  TempFolder folder{TempFolder::memory()};
  fs::path now = folder / "now";
  std::map<int64_t, std::string> names{{2, "step-00000002"}, {3, "step-00000003"}, {4, "step-00000004"}};
};

TEST_P(EveryCall, KilledBeforeItLeavesTheOldOrTheNewOne) {
  const size_t calls = save_traced({}).calls.size();
  ASSERT_GT(calls, 20u);
  for (int n = 0; n < static_cast<int>(calls); ++n) {
    SCOPED_TRACE(testing::Message() << "killed at call " << n << " of " << calls);
    const TraceResult result = save_traced({.kill_at = n});
    ASSERT_EQ(result.exit_code, -1);
    ASSERT_EQ(result.calls.size(), static_cast<size_t>(n));
    expect_old_or_new();
  }
}

TEST_P(EveryCall, FailedItIsReportedAndNothingIsLost) {
  const TraceResult whole = save_traced({});
  ASSERT_EQ(whole.exit_code, kSaved);
  fs::remove_all(now);
  fs::copy(folder / "before", now, fs::copy_options::recursive);
  const auto names_before = names_in(now);
  int threw = 0;
  for (int n = 0; n < static_cast<int>(whole.calls.size()); ++n) {
    const FileCall& call = whole.calls[static_cast<size_t>(n)];
    SCOPED_TRACE(testing::Message() << "call " << n << ": " << call.name << " " << call.path << " " << call.path2);
    const TraceResult result = save_traced({.fail_at = n, .error = ENOSPC});
    if (result.exit_code == kThrew) {
      ++threw;
      EXPECT_EQ(names_in(now), names_before);
      EXPECT_TRUE(holds(now / names.at(2), 2, kRows));
    } else {
      // What fails after the checkpoint is whole is a warning.
      EXPECT_EQ(result.exit_code, kWarned);
      EXPECT_TRUE(new_one_is_whole());
    }
    expect_old_or_new();
  }
  EXPECT_GT(threw, 15);
}

// File systems that cannot swap two names (NFS, say) refuse the call with EINVAL; then three renames do it, and a crash
// between any two of them must leave the old or the new one too.
TEST(Crash, ReplacingWithoutSwappingNamesSurvivesTheSame) {
  constexpr int64_t kRows = 10;
  TempFolder folder{TempFolder::memory()};
  const fs::path now = folder / "now", path = now / "step-00000002";
  const auto traced = [&](const TraceOptions& options) {
    fs::remove_all(now);
    save(now, 2, kRows, {.keep = 2});
    return trace([&] { return save(now, 2, kRows, {.keep = 2}, 1).warnings.empty() ? kSaved : kWarned; }, options);
  };
  const auto calls = traced({}).calls;
  int swap = 0;
  while (calls.at(static_cast<size_t>(swap)).path2 != path.string()) ++swap;
  const TraceResult whole = traced({.fail_at = swap, .error = EINVAL});
  ASSERT_EQ(whole.exit_code, kSaved);
  EXPECT_TRUE(holds(path, 2, kRows, 1));
  EXPECT_FALSE(any_left_over(now));
  for (int n = swap + 1; n < static_cast<int>(whole.calls.size()); ++n) {
    SCOPED_TRACE(testing::Message() << "killed at call " << n);
    ASSERT_EQ(traced({.kill_at = n, .fail_at = swap, .error = EINVAL}).exit_code, -1);
    EXPECT_EQ(latest_checkpoint(now, never), path);
    EXPECT_TRUE(holds(path, 2, kRows, 0) || holds(path, 2, kRows, 1));
    save(now, 3, kRows, {});
    EXPECT_FALSE(any_left_over(now));
  }
}

// A machine that loses power keeps only what was fsynced: nothing may get its final name, and nothing old may go,
// before all of the new checkpoint is on the disk.
TEST_P(EveryCall, TheOrderSurvivesALossOfPower) {
  const TraceResult result = save_traced({});
  ASSERT_EQ(result.exit_code, kSaved);
  const std::string target = (now / names.at(GetParam())).string(), parent = now.string();
  std::set<std::string> dirty;  // files with unwritten bytes, folders with unwritten names
  bool published = false, removed = false;
  const auto changes_name = [&](const std::string& path) { dirty.insert(fs::path(path).parent_path().string()); };
  for (const FileCall& call : result.calls) {
    if (call.result < 0) continue;
    if (call.creates || call.name == "mkdir") {
      changes_name(call.path);
    } else if (call.name == "write" || call.name == "pwrite64" || call.name == "ftruncate") {
      dirty.insert(call.path);
    } else if (call.name == "fsync") {
      dirty.erase(call.path);
    } else if (call.name.starts_with("rename")) {
      if (call.path2 == target) {
        published = true;
        for (const std::string& path : dirty) {
          EXPECT_EQ(path.find(".tmp-"), std::string::npos) << path << " is not on the disk, but gets its name";
        }
      } else if (call.path2 == parent + "/latest") {
        EXPECT_FALSE(dirty.count(call.path));
      }
      changes_name(call.path), changes_name(call.path2);
    } else if (call.name.starts_with("unlink") || call.name == "rmdir") {
      if (!removed) {
        EXPECT_TRUE(published);
        EXPECT_TRUE(fs::path(call.path).filename() == "manifest.json") << call.path;
        EXPECT_FALSE(dirty.count(parent)) << "an old checkpoint goes before the new name is on the disk";
      }
      removed = true;
      dirty.erase(call.path);
    }
  }
  EXPECT_TRUE(published && removed);
  EXPECT_FALSE(dirty.count((now / "latest").string()));
}

INSTANTIATE_TEST_SUITE_P(Saves, EveryCall, testing::Values(2, 3), [](const auto& saved) {
  return saved.param == 2 ? std::string("Replacing") : std::string("Adding");
});

// Other forms of a checkpoint: whole under their name, or not there, and no temporary file that stays.
TEST(Crash, OtherFormsFailedAtEveryCallLeaveNothing) {
  constexpr int64_t kRows = 10;
  TempFolder folder{TempFolder::memory()};
  save(folder / "from", 7, kRows, {});
  const CheckpointReader reader(folder / "from" / "step-00000007");
  const TensorSource source = source_of(reader);
  const std::map<std::string, std::function<void()>> forms = {
      {"h5", [&] { export_tensors(source, folder / "now" / "m.h5"); }},
      {"safetensors", [&] { export_tensors(source, folder / "now" / "m.safetensors"); }},
      {"resharded", [&] { write_checkpoint(source, folder / "now", 2); }}};
  for (const auto& [name, form] : forms) {
    const auto traced = [&, write = form](const TraceOptions& options) {
      fs::remove_all(folder / "now");
      fs::create_directory(folder / "now");
      return trace(
          [&] {
            try {
              write();
              return kSaved;
            } catch (const Error& error) {
              return std::string(error.what()).find((folder / "now").string()) != std::string::npos ? kThrew
                                                                                                    : kBadMessage;
            }
          },
          options);
    };
    const auto calls = traced({}).calls;
    ASSERT_GT(calls.size(), 5u) << name;
    for (int n = 0; n < static_cast<int>(calls.size()); ++n) {
      const FileCall& call = calls[static_cast<size_t>(n)];
      SCOPED_TRACE(testing::Message() << name << ", call " << n << ": " << call.name << " " << call.path);
      const TraceResult result = traced({.fail_at = n, .error = ENOSPC});
      const bool clears_up = call.name.starts_with("unlink") || call.name == "rmdir";
      if (result.exit_code == kSaved && clears_up) continue;
      EXPECT_EQ(result.exit_code, kThrew);
      // The last call makes the name durable; what it names is whole by then.
      for (const std::string& left : names_in(folder / "now")) EXPECT_EQ(left.find(".tmp"), std::string::npos) << left;
    }
  }
}

// Files longer than a limit cannot be written: the kernel's way of a full disk that needs no privileges.
TEST(Crash, AFileThatCannotGrowIsReportedAndThePreviousStays) {
  TempFolder folder;
  save(folder.path(), 1, 10, {});
  const auto before = names_in(folder.path());
  for (rlim_t limit : {1, 100, 3000, 100000, 1000000}) {
    std::string message;
    {
      const testing_files::FileSizeLimit limited(limit);
      message = thrown([&] { save(folder.path(), 2, 100000, {}); });
    }
    EXPECT_THAT(message, AllOf(HasSubstr(folder.path().string()), HasSubstr("File too large"))) << limit;
    EXPECT_EQ(names_in(folder.path()), before);
    EXPECT_TRUE(holds(folder / "step-00000001", 1, 10));
  }
  save(folder.path(), 2, 100000, {});
  EXPECT_TRUE(holds(folder / "step-00000002", 2, 100000));
}

TEST(Crash, AFolderThatCannotBeMadeIsReported) {
  TempFolder folder;
  put_text(folder / "plain", "x");
  EXPECT_THAT(thrown([&] { save(folder / "plain", 1, 10, {}); }), HasSubstr((folder / "plain").string()));
  EXPECT_THAT(thrown([&] { save(folder / "plain" / "below", 1, 10, {}); }), HasSubstr("Not a directory"));
}

}  // namespace
}  // namespace tmamba
