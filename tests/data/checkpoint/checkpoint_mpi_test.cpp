// Checkpoints written and found by several ranks together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "data/checkpoint/slice_relay.h"
#include "dist/comm/collective_guard.h"
#include "tests/data/checkpoint/checkpoint_fixture.h"
#include "tests/data/temp_folder.h"
#include "tests/dist/comm/mpi_main.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class CheckpointMpiTest : public testing::Test {
 protected:
  CheckpointMpiTest() : comm(test_world().comm()), guard(comm) {
    if (guard.is_root()) own = std::make_unique<TempFolder>();
    folder = guard.broadcast(own ? own->path().string() : "");
  }
  // The folder goes only when nobody looks at it any more.
  void TearDown() override { comm.barrier(); }

  std::string rank_prefix(int rank) const { return comm.size() == 1 ? "" : str("rank ", rank, ": "); }
  SaveReport save(int64_t step, std::span<const TensorSlice> slices) {
    return save_checkpoint(comm, folder, step, slices, {{"step", step}}, {.keep = 0});
  }
  // All ranks must have thrown the same.
  void expect_same(const std::string& message) {
    for (const std::string& other : guard.gather(message)) EXPECT_EQ(other, message);
  }

  Communicator& comm;
  CollectiveGuard guard;
  std::unique_ptr<TempFolder> own;
  fs::path folder;
};

TEST_F(CheckpointMpiTest, WhatAllWroteEachReadsWhole) {
  for (int pieces : {1, 2, 5, 16}) {
    auto tensors = sample_tensors(4);
    const auto slices = deal(tensors, pieces, 2, comm.rank(), comm.size());
    const SaveReport report = save(pieces, slices);
    const CheckpointReader reader(report.path);
    EXPECT_EQ(reader.bytes(), report.bytes);
    for (const Logical& tensor : tensors) EXPECT_EQ(read_whole(reader, tensor), tensor.bytes) << tensor.name;
    EXPECT_THAT(reader.verify(), IsEmpty());
    const Manifest manifest = parse_manifest(file_text(report.path / "manifest.json"));
    EXPECT_EQ(manifest.files.size(), static_cast<size_t>(comm.size()));
    EXPECT_EQ(manifest.tensors.size(), tensors.size());
    expect_same(nlohmann::json{report.path.string(), report.bytes, report.seconds, report.warnings}.dump());
  }
}

TEST_F(CheckpointMpiTest, RanksWithoutSlicesWriteNoFile) {
  auto tensors = sample_tensors(4);
  const int writer = comm.size() - 1;
  const auto slices = comm.rank() == writer ? deal(tensors, 1, 0) : std::vector<TensorSlice>{};
  const fs::path path = save(1, slices).path;
  comm.barrier();
  EXPECT_THAT(names_in(path), ElementsAre("manifest.json", str("rank-0000", writer, ".h5")));
  const CheckpointReader reader(path);
  for (const Logical& tensor : tensors) EXPECT_EQ(read_whole(reader, tensor), tensor.bytes);
  EXPECT_EQ(save(2, {}).path, folder / "step-00000002");
}

// Hosts of two ranks: the first of them writes for both.
TEST_F(CheckpointMpiTest, OneWriterForAHostStoresTheSame) {
  auto tensors = sample_tensors(4);
  // Larger than the memory that its bytes go through.
  tensors.emplace_back("model/large", DType::f32, std::vector<int64_t>{2500, 1000}, 9);
  const int leader = comm.rank() / 2 * 2, last = comm.size() - 1;
  HostGroup host(comm, leader, SliceRelay::kBytesPerRank);
  EXPECT_EQ(host.leads(), comm.rank() == leader);
  const SaveOptions options{.keep = 0, .host = &host};
  for (int pieces : {1, 5, 16}) {
    const auto slices = deal(tensors, pieces, 2, comm.rank(), comm.size());
    save(1, slices);
    try_checkpoint_space(comm, folder, 10000, &host);
    const SaveReport report = save_checkpoint(comm, folder, 2, slices, {{"step", 2}}, options);
    const CheckpointReader reader(report.path), other(folder / "step-00000001");
    for (const Logical& tensor : tensors) EXPECT_EQ(read_whole(reader, tensor), tensor.bytes) << tensor.name;
    EXPECT_THAT(reader.verify(), IsEmpty());
    const Manifest manifest = parse_manifest(file_text(report.path / "manifest.json"));
    EXPECT_EQ(manifest.files.size(), static_cast<size_t>(ceil_div(comm.size(), 2)));
    for (size_t i = 0; i < manifest.files.size(); ++i)
      EXPECT_EQ(manifest.files[i].name, str("rank-0000", 2 * i, ".h5"));
    EXPECT_EQ(manifest.tensors.size(), other.tensors().size());
    comm.barrier();
  }
  // A writer that cannot write stops all alike, and those that hand it their slices do not wait for ever.
  const auto slices = deal(tensors, 16, 2, comm.rank(), comm.size());
  {
    std::optional<testing_files::FileSizeLimit> limited;
    if (comm.rank() == last / 2 * 2) limited.emplace(3000000);
    const std::string message = thrown([&] { save_checkpoint(comm, folder, 3, slices, {{"step", 3}}, options); });
    limited.reset();
    EXPECT_THAT(message, HasSubstr("File too large"));
    expect_same(message);
  }
  // Where a rank gives up, so does its writer.
  if (comm.size() > 1) {
    CheckpointSave save(comm, folder, 3, slices, {{"step", 3}}, options);
    if (comm.rank() == 1) save.cancel();
    save.write();
    const std::string message = thrown([&] { save.agree(); });
    EXPECT_THAT(message, HasSubstr("rank 1 of this host failed to send"));
    expect_same(message);
  }
  comm.barrier();
  EXPECT_THAT(names_in(folder), ElementsAre("latest", "step-00000001", "step-00000002"));
  comm.barrier();
  save_checkpoint(comm, folder, 3, slices, {{"step", 3}}, options);
  EXPECT_THAT(CheckpointReader(folder / "step-00000003").verify(), IsEmpty());
}

TEST_F(CheckpointMpiTest, OneRankThatCannotWriteStopsAllAlike) {
  auto tensors = sample_tensors(4);
  const auto slices = deal(tensors, 16, 2, comm.rank(), comm.size());
  save(1, slices);
  const int last = comm.size() - 1;
  for (rlim_t limit : {10, 3000, 100000}) {
    std::optional<testing_files::FileSizeLimit> limited;
    if (comm.rank() == last) limited.emplace(limit);
    const std::string message = thrown([&] { save(2, slices); });
    limited.reset();
    EXPECT_THAT(message, AllOf(testing::StartsWith(rank_prefix(last)), HasSubstr(folder.string()),
                               HasSubstr(str("rank-0000", last, ".h5")), HasSubstr("File too large")));
    expect_same(message);
    comm.barrier();
    EXPECT_THAT(names_in(folder), ElementsAre("latest", "step-00000001"));
    EXPECT_THAT(CheckpointReader(folder / "step-00000001").verify(), IsEmpty());
    comm.barrier();
  }
  save(2, slices);
  EXPECT_THAT(CheckpointReader(folder / "step-00000002").verify(), IsEmpty());
}

// A path that is a local disk of each node: found by the trial before the first step, not by a checkpoint with holes.
TEST_F(CheckpointMpiTest, AFolderThatRanksDoNotShareIsFoundAtOnce) {
  const fs::path mine = folder / str(comm.rank());
  fs::create_directories(mine);
  comm.barrier();
  if (comm.size() == 1) return try_checkpoint_space(comm, mine, 1000, nullptr);
  const std::string message = thrown([&] { try_checkpoint_space(comm, mine, 1000, nullptr); });
  EXPECT_THAT(message,
              AllOf(HasSubstr("rank 1: cannot create " + (folder / "1").string()), HasSubstr("rank-00001.h5")));
  expect_same(message);
  comm.barrier();
  EXPECT_THAT(names_in(mine), IsEmpty());
}

TEST_F(CheckpointMpiTest, RanksThatDoNotFitTogetherAreRefused) {
  Logical x("x", DType::f32, {comm.size(), 4}, 1);
  const auto row = [&](int64_t i) { return std::vector<TensorSlice>{slice_of(x, {{i, 0}, {1, 4}})}; };
  const int last = comm.size() - 1;
  const auto refused = [&](int64_t step, std::span<const TensorSlice> slices) {
    const std::string message = thrown([&] { save(step, slices); });
    expect_same(message);
    return message;
  };
  const auto most = std::vector<TensorSlice>{slice_of(x, {{last, 0}, {1, 3}})};
  EXPECT_THAT(refused(1, comm.rank() == last ? most : row(comm.rank())), HasSubstr("hole, 1 of"));
  auto twice = row(comm.rank());
  if (comm.rank() == last) twice.push_back(row(0)[0]);
  EXPECT_THAT(refused(1, twice), HasSubstr("overlap"));
  auto nameless = row(comm.rank());
  if (comm.rank() == last) nameless[0].name = "";
  EXPECT_THAT(refused(1, nameless), testing::StartsWith(rank_prefix(last) + "a tensor has an empty name"));
  if (comm.size() > 1) {
    EXPECT_THAT(refused(comm.rank(), row(comm.rank())), HasSubstr("saves step"));
    Logical other("x", DType::f64, {comm.size(), 4}, 1);
    const auto mixed = comm.rank() == last ? std::vector{slice_of(other, {{last, 0}, {1, 4}})} : row(comm.rank());
    EXPECT_THAT(refused(1, mixed), HasSubstr(str("tensor x on rank ", last, " is float64")));
  }
  comm.barrier();
  EXPECT_THAT(names_in(folder), IsEmpty());
  comm.barrier();
  save(1, row(comm.rank()));
  EXPECT_EQ(read_whole(CheckpointReader(folder / "step-00000001"), x), x.bytes);
}

TEST_F(CheckpointMpiTest, AllRanksAgreeOnTheLatestCompleteOne) {
  auto tensors = sample_tensors(4);
  const auto slices = deal(tensors, 16, 2, comm.rank(), comm.size());
  const auto any = [](const fs::path&, const std::string&) {};
  EXPECT_EQ(latest_checkpoint(comm, folder / "absent", any), std::nullopt);
  for (int64_t step : {1, 2, 3, 4}) save(step, slices);
  if (guard.is_root()) {
    const auto damage = [&](const std::string& name, int rank) {
      const fs::path file = folder / name / str("rank-0000", rank, ".h5");
      std::string text = file_text(file);
      text[text.size() / 2] ^= 4;
      put_text(file, text);
    };
    damage("step-00000004", comm.size() - 1);
    damage("step-00000003", 0);
    put_text(folder / "step-00000002/manifest.json", "{}");
  }
  comm.barrier();
  std::vector<std::string> told;
  const auto found = latest_checkpoint(
      comm, folder, [&](const fs::path& path, const std::string&) { told.push_back(path.filename().string()); });
  EXPECT_EQ(found, folder / "step-00000001");
  if (guard.is_root()) {
    EXPECT_THAT(told, ElementsAre("step-00000004", "step-00000003", "step-00000002"));
  }
  comm.barrier();
  EXPECT_THAT(names_in(folder), ElementsAre("latest", "step-00000001", "step-00000002.damaged", "step-00000003.damaged",
                                            "step-00000004.damaged"));
}

TEST_F(CheckpointMpiTest, TheKindOfAnErrorReachesAllRanks) {
  const int last = comm.size() - 1;
  const auto fail_on_last = [&](auto error) {
    guard.on_all([&] {
      if (comm.rank() == last) throw error;
    });
  };
  EXPECT_EQ(thrown<UserError>([&] { fail_on_last(UserError("no")); }), rank_prefix(last) + "no");
  EXPECT_EQ(thrown<Error>([&] { fail_on_last(std::bad_alloc()); }), rank_prefix(last) + "std::bad_alloc");
  EXPECT_NO_THROW(guard.on_all([] {}));
  const auto texts = guard.gather(std::string(static_cast<size_t>(comm.rank()), 'x'));
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(texts[i], std::string(i, 'x'));
}

}  // namespace
}  // namespace tmamba
