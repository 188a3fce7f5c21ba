// Checkpoints whose bytes changed after they were written: nothing wrong is ever loaded, and what is whole still is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "data/checkpoint/tensor_source.h"
#include "data/io/fs.h"
#include "data/io/sha256.h"
#include "dist/comm/self_communicator.h"
#include "kernels/base/buffer.h"
#include "tests/data/checkpoint/checkpoint_fixture.h"
#include "tests/trials.h"

namespace {
bool reads_fail = false;
}

// Takes the C library's place, to be a disk that fails.
extern "C" ssize_t pread(int fd, void* data, size_t bytes, off_t position) {
  if (!reads_fail) return syscall(SYS_pread64, fd, data, bytes, position);
  errno = EIO;
  return -1;
}

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class DamageTest : public testing::Test {
 protected:
  DamageTest() {
    for (int i = 0; i < 4; ++i) {
      tensors.emplace_back("model/t" + std::to_string(i), i % 2 ? DType::bf16 : DType::f32,
                           std::vector<int64_t>{16 + i, 10}, 3);
    }
    SelfCommunicator self("self");
    path = save_checkpoint(self, folder.path(), 1, deal(tensors, 2, 3), {{"note", "state"}}, {}).path;
    file = path / "rank-00000.h5";
    const auto manifest = parse_manifest(file_text(path / "manifest.json"));
    stored = manifest.tensors;
  }

  // The tensor whose bytes lie at `position`, and which of its slices; null for HDF5's own bytes.
  const ManifestTensor* owner(int64_t position) const {
    for (const ManifestTensor& tensor : stored) {
      for (const StoredSlice& slice : tensor.slices) {
        if (position >= slice.position && position < slice.position + checked_bytes(slice.shape, tensor.dtype)) {
          return &tensor;
        }
      }
    }
    return nullptr;
  }

  // The same tensors as those of another step.
  TensorSource source_of_tensors() {
    TensorSource source{.path = "memory", .step = 2, .state = {}, .tensors = {}, .read = {}};
    for (const Logical& tensor : tensors) source.tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
    source.read = [this](const std::string& name, int64_t row, const Tensor& out) {
      for (Logical& tensor : tensors) {
        if (tensor.name == name) copy_blocking(out, tensor.view().slice(0, row, out.size(0)));
      }
    };
    return source;
  }

  TempFolder folder{TempFolder::memory()};
  std::vector<Logical> tensors;
  std::vector<ManifestTensor> stored;
  fs::path path, file;
};

TEST_F(DamageTest, EveryFlippedByteOfAShardIsReportedAndOnlyItsTensorIsLost) {
  const std::string good = file_text(file);
  size_t in_tensors = 0;
  for (size_t i = 0; i < good.size(); i += 7) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i / 7 % 8)));
    put_text(file, bad);
    const ManifestTensor* hit = owner(static_cast<int64_t>(i));
    const CheckpointReader reader(path);
    const auto problems = reader.verify();
    ASSERT_THAT(problems, SizeIs(hit ? 2 : 1)) << "byte " << i;
    EXPECT_THAT(problems.back(), AllOf(HasSubstr(file.string()), HasSubstr("SHA-256")));
    if (hit) {
      EXPECT_THAT(problems[0], AllOf(HasSubstr(file.string()), HasSubstr("tensor " + hit->name + ",")));
    }
    for (const Logical& tensor : tensors) {
      if (hit && tensor.name == hit->name) {
        ++in_tensors;
        for (int again = 0; again < 2; ++again) {  // a failure is not remembered as verified
          EXPECT_THAT(thrown<DamagedCheckpoint>([&] { read_whole(reader, tensor); }),
                      AllOf(HasSubstr(file.string()), HasSubstr("tensor " + tensor.name + ","), HasSubstr("CRC32C")));
        }
      } else {
        ASSERT_EQ(read_whole(reader, tensor), tensor.bytes) << "byte " << i;
      }
    }
  }
  EXPECT_GT(in_tensors, 200u);
}

TEST_F(DamageTest, AHealthySliceOfADamagedTensorStillReads) {
  const StoredSlice& bad_slice = stored[0].slices[0];
  const StoredSlice& good_slice = stored[0].slices[1];
  std::string bytes = file_text(file);
  bytes[static_cast<size_t>(bad_slice.position)] ^= 1;
  put_text(file, bytes);
  const CheckpointReader reader(path);
  Logical target("t", stored[0].dtype, stored[0].shape, 99);
  EXPECT_NO_THROW(reader.read(stored[0].name, good_slice.offset, target.part(good_slice.offset, good_slice.shape)));
  EXPECT_THAT(thrown<DamagedCheckpoint>([&] {
                reader.read(stored[0].name, bad_slice.offset, target.part(bad_slice.offset, {1, 1}));
              }),
              HasSubstr("slice " + brackets(bad_slice.shape) + " at " + brackets(bad_slice.offset)));
}

TEST_F(DamageTest, AVerifiedSliceIsNotSummedAgain) {
  const CheckpointReader reader(path);
  read_whole(reader, tensors[0]);
  std::string bytes = file_text(file);
  const StoredSlice& slice = stored[0].slices[0];
  bytes[static_cast<size_t>(slice.position)] ^= 1;
  put_text(file, bytes);
  EXPECT_NE(read_whole(reader, tensors[0]), tensors[0].bytes);
  EXPECT_THAT(reader.verify(), SizeIs(2));
}

TEST_F(DamageTest, EveryFlippedByteOfTheManifestIsFound) {
  const fs::path manifest = path / "manifest.json";
  const std::string good = file_text(manifest);
  for (size_t i = 0; i < good.size(); i += 3) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    put_text(manifest, bad);
    EXPECT_THAT(thrown<DamagedCheckpoint>([&] { CheckpointReader reader(path); }), HasSubstr(manifest.string())) << i;
  }
}

TEST_F(DamageTest, FilesThatAreNotWhatTheManifestSaysAreRefused) {
  const auto open = [&] { return thrown<DamagedCheckpoint>([&] { CheckpointReader reader(path); }); };
  const std::string good = file_text(file);
  for (size_t bytes : {size_t{0}, size_t{1}, good.size() / 2, good.size() - 1}) {
    put_text(file, good.substr(0, bytes));
    EXPECT_THAT(open(), AllOf(HasSubstr(file.string()), HasSubstr(str("has ", bytes, " bytes"))));
  }
  put_text(file, good + "x");
  EXPECT_THAT(open(), HasSubstr(", expected "));
  fs::remove(file);
  EXPECT_THAT(open(), AllOf(HasSubstr(file.string()), HasSubstr("No such file")));
  put_text(folder / "elsewhere.h5", good);
  fs::create_symlink(folder / "elsewhere.h5", file);
  EXPECT_THAT(open(), HasSubstr("symbolic link"));
  fs::remove(file);
  fs::create_directory(file);
  EXPECT_THAT(open(), HasSubstr(file.string()));
  fs::remove(file);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
  EXPECT_THAT(open(), HasSubstr("plain file"));
  fs::remove(file);
  put_text(file, good);
  EXPECT_EQ(open(), "");
}

TEST_F(DamageTest, FilesMayBeLookedAtWhenTheyAreRead) {
  const std::string good = file_text(file);
  fs::remove(file);
  const CheckpointReader reader(path, FileCheck::when_read);
  EXPECT_EQ(reader.state(), (nlohmann::json{{"note", "state"}}));
  EXPECT_THAT(thrown<DamagedCheckpoint>([&] { read_whole(reader, tensors[0]); }), HasSubstr("No such file"));
  put_text(file, good + "x");
  EXPECT_THAT(thrown<DamagedCheckpoint>([&] { read_whole(reader, tensors[0]); }), HasSubstr(", expected "));
  EXPECT_THAT(reader.verify().at(0), HasSubstr(", expected "));
  put_text(file, good);
  EXPECT_EQ(read_whole(reader, tensors[0]), tensors[0].bytes);
}

TEST_F(DamageTest, AFileThatGoesAfterOpeningIsDamage) {
  const CheckpointReader reader(path);
  fs::resize_file(file, 2500);
  EXPECT_NE(thrown<DamagedCheckpoint>([&] {
              for (const Logical& tensor : tensors) read_whole(reader, tensor);
            }),
            "");
  EXPECT_THAT(reader.verify(), SizeIs(1));
  fs::remove(file);
  EXPECT_THAT(reader.verify().at(0), HasSubstr("No such file"));
}

TEST_F(DamageTest, ManifestsThatCannotBeReadAreDamageOrTheUsersBusiness) {
  const fs::path manifest = path / "manifest.json";
  const std::string good = file_text(manifest);
  fs::resize_file(manifest, (int64_t{256} << 20) + 1);  // sparse
  EXPECT_THAT(thrown<DamagedCheckpoint>([&] { CheckpointReader reader(path); }), HasSubstr("the limit is 268435456"));
  fs::remove(manifest);
  EXPECT_THAT(thrown<UserError>([&] { CheckpointReader reader(path); }), HasSubstr("has no manifest.json"));
  fs::create_directory(manifest);
  EXPECT_THAT(thrown<DamagedCheckpoint>([&] { CheckpointReader reader(path); }), HasSubstr(manifest.string()));
  EXPECT_THAT(list_checkpoints(folder.path()), IsEmpty());
  fs::remove(manifest);
  put_text(manifest, good);
  EXPECT_THAT(list_checkpoints(folder.path()), SizeIs(1));
}

// Any of the files of a checkpoint of several, flipped, cut, lengthened, swapped or gone: the latest complete one is
// the one before, and nothing wrong is ever loaded.
TEST_F(DamageTest, RandomDamageNeverLoadsSilently) {
  SelfCommunicator self("self");
  const fs::path spare = folder / "spare";
  TensorSource source = source_of_tensors();
  const fs::path several = write_checkpoint(source, spare, 3);
  const uint64_t seed = trial_seed(31);
  std::mt19937_64 random(seed);
  const fs::path latest = folder / "step-00000002";
  for (int trial = 0; trial < trials(1000); ++trial) {
    SCOPED_TRACE(testing::Message() << "trial " << trial << ", seed " << seed);
    fs::remove_all(latest);
    fs::remove_all(folder / "step-00000002.damaged");
    fs::copy(several, latest, fs::copy_options::recursive);
    const auto names = names_in(latest);
    const fs::path target = latest / names[random() % names.size()];
    std::string bytes = file_text(target);
    switch (random() % 8) {
      case 0:
        bytes.resize(random() % bytes.size());
        put_text(target, bytes);
        break;
      case 1:
        fs::remove(target);
        break;
      case 2:
        put_text(target, bytes + static_cast<char>(random()));
        break;
      case 3: {
        const fs::path other = latest / names[(static_cast<size_t>(random()) % (names.size() - 1) + 1) % names.size()];
        if (other == target) continue;
        fs::remove(target);
        fs::copy(other, target);
        break;
      }
      default:
        bytes[random() % bytes.size()] ^= static_cast<char>(1 << (random() % 8));
        put_text(target, bytes);
    }
    std::string problem;
    const auto found = latest_checkpoint(folder.path(), [&](const fs::path& damaged, const std::string& why) {
      EXPECT_EQ(damaged, latest);
      problem = why;
    });
    ASSERT_TRUE(found);
    EXPECT_EQ(*found, path);
    // A folder without a manifest is not a checkpoint; it is ignored without a message.
    EXPECT_TRUE(!problem.empty() || !fs::exists(latest / "manifest.json"));
  }
}

// A failing file system returns errors for every file, although the checkpoints may be intact.
TEST_F(DamageTest, AFailingDiskSetsNoCheckpointAside) {
  const auto never = [](const fs::path&, const std::string& problem) { ADD_FAILURE() << problem; };
  reads_fail = true;
  const std::string problem = thrown<Error>([&] { latest_checkpoint(folder.path(), never); });
  reads_fail = false;
  EXPECT_THAT(problem, AllOf(HasSubstr(path.string()), HasSubstr("Input/output error")));
  EXPECT_EQ(latest_checkpoint(folder.path(), never), path);
}

TEST_F(DamageTest, AnotherVersionIsNotRenamedAsDamage) {
  const fs::path manifest = path / "manifest.json";
  std::string text = file_text(manifest);
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 9");
  const size_t seal = text.rfind(",\n \"sha256\"");
  put_text(manifest, text.substr(0, seal) + ",\n \"sha256\": \"" + sha256_hex(text.substr(0, seal)) + "\"\n}\n");
  const auto never = [](const fs::path&, const std::string& problem) { ADD_FAILURE() << problem; };
  EXPECT_THAT(thrown<UserError>([&] { latest_checkpoint(folder.path(), never); }), HasSubstr("format version 9"));
  EXPECT_TRUE(fs::exists(path));
}

}  // namespace
}  // namespace tmamba
