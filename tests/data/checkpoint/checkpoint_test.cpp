// Saving, loading, retention and naming of checkpoints on one rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "data/checkpoint/checkpoint_folder.h"
#include "data/hdf5/h5.h"
#include "dist/comm/self_communicator.h"
#include "tests/data/checkpoint/checkpoint_fixture.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class CheckpointTest : public testing::Test {
 protected:
  SaveReport save(int64_t step, std::span<const TensorSlice> slices, const SaveOptions& options = {.keep = 0}) {
    return save_checkpoint(self, folder.path(), step, slices, {{"step", step}, {"lr", 2.5e-4}}, options);
  }
  SaveReport save_small(int64_t step, const SaveOptions& options = {.keep = 0}) {
    std::vector<Logical> tensors;
    tensors.emplace_back("model/x", DType::f32, std::vector<int64_t>{4, 3}, static_cast<uint64_t>(step));
    return save(step, deal(tensors, 1, 0), options);
  }

  TempFolder folder;
  SelfCommunicator self{"self"};
};

TEST_F(CheckpointTest, WholeTensorsOfEveryTypeComeBackBitForBit) {
  auto tensors = sample_tensors(1);
  const SaveReport report = save(1000, deal(tensors, 1, 0));
  EXPECT_EQ(report.path, folder / "step-00001000");
  EXPECT_GT(report.bytes, 600 * 301 * 8);
  EXPECT_THAT(report.warnings, IsEmpty());
  EXPECT_THAT(names_in(report.path), ElementsAre("manifest.json", "rank-00000.h5"));
  EXPECT_EQ(file_text(folder / "latest"), "step-00001000\n");

  const CheckpointReader reader(report.path);
  EXPECT_EQ(reader.step(), 1000);
  EXPECT_EQ(reader.state(), (nlohmann::json{{"step", 1000}, {"lr", 2.5e-4}}));
  EXPECT_EQ(reader.bytes(), report.bytes);
  ASSERT_EQ(reader.tensors().size(), tensors.size());
  for (size_t i = 1; i < tensors.size(); ++i) EXPECT_LT(reader.tensors()[i - 1].name, reader.tensors()[i].name);
  for (const Logical& tensor : tensors) {
    ASSERT_TRUE(reader.has(tensor.name));
    EXPECT_EQ(read_whole(reader, tensor), tensor.bytes) << tensor.name;
  }
  EXPECT_FALSE(reader.has("model/embedding"));
  EXPECT_THAT(reader.verify(), IsEmpty());
}

TEST_F(CheckpointTest, AnySlicingIsReadBackByAnyOther) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    auto tensors = sample_tensors(seed);
    const auto slices = deal(tensors, 1 + static_cast<int>(seed), seed);
    const CheckpointReader reader(save(static_cast<int64_t>(seed), slices).path);
    for (Logical& tensor : tensors) {
      // Read into the middle of a larger tensor: what lies around must stay.
      Logical target(tensor.name, tensor.dtype, tensor.shape, seed + 1000);
      auto expected = target.bytes;
      for (const Part& part : cut(tensor.shape, 9, random)) {
        if (random() % 3 == 0) continue;
        reader.read(tensor.name, part.offset, target.part(part.offset, part.size));
        Logical model = tensor;
        const Tensor from = model.part(part.offset, part.size);
        const size_t width = size_of(tensor.dtype), row_bytes = static_cast<size_t>(from.size(from.dims() - 1)) * width;
        const int64_t rows = from.dims() == 1 ? 1 : from.size(0);
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t element =
              from.dims() == 1 ? part.offset[0] : (part.offset[0] + row) * tensor.shape[1] + part.offset[1];
          const size_t at = static_cast<size_t>(element) * width;
          std::copy_n(tensor.bytes.begin() + static_cast<int64_t>(at), row_bytes,
                      expected.begin() + static_cast<int64_t>(at));
        }
      }
      EXPECT_EQ(target.bytes, expected) << tensor.name;
    }
    EXPECT_THAT(reader.verify(), IsEmpty());
  }
}

TEST_F(CheckpointTest, FilesAreHdf5ThatOthersCanRead) {
  auto tensors = sample_tensors(5);
  std::vector<TensorSlice> slices = deal(tensors, 1, 0);
  Logical rows("model/rows", DType::f32, {10, 6}, 5);
  slices.push_back(slice_of(rows, {{0, 0}, {4, 6}}));
  slices.push_back(slice_of(rows, {{4, 0}, {6, 6}}));
  const H5File file = H5File::open_read(save(7, slices).path / "rank-00000.h5");
  for (const Logical& tensor : tensors) {
    const H5Dataset dataset = file.dataset("/" + tensor.name);
    EXPECT_EQ(dataset.info().shape, tensor.shape);
    EXPECT_EQ(dataset.info().type, h5_type(tensor.dtype));
    std::vector<uint8_t> bytes(tensor.bytes.size());
    dataset.read(std::vector<int64_t>(tensor.shape.size(), 0), tensor.shape, h5_type(tensor.dtype), bytes.data());
    EXPECT_EQ(bytes, tensor.bytes) << tensor.name;
  }
  EXPECT_EQ(file.string_attribute("/model/norm.weight", "dtype"), "bfloat16");
  EXPECT_FALSE(file.has_attribute("/state/tokens", "dtype"));
  EXPECT_EQ(file.dataset("/model/rows/4,0").info().shape, (std::vector<int64_t>{6, 6}));
  EXPECT_EQ(file.string_attribute("/model/rows/4,0", "offset"), "4,0");
  EXPECT_EQ(file.string_attribute("/model/rows/4,0", "tensor_shape"), "10,6");
}

TEST_F(CheckpointTest, TheSameContentGivesTheSameBytes) {
  auto tensors = sample_tensors(3);
  const auto slices = deal(tensors, 3, 9);
  save(1, slices);
  std::map<std::string, std::string> first;
  for (const auto& name : names_in(folder / "step-00000001")) first[name] = file_text(folder / "step-00000001" / name);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // another second, were a time stored
  fs::rename(folder / "step-00000001", folder / "first");
  save(1, slices);
  for (const auto& [name, text] : first) EXPECT_EQ(file_text(folder / "step-00000001" / name), text) << name;
}

TEST_F(CheckpointTest, FloatsAreConvertedToTheNearest) {
  std::vector<float> x{0.f, -0.f, 1.f, 1.00390625f, 1.01171875f, 3.4e38f, 1e-40f, INFINITY, NAN};
  std::vector<double> y{1.0 + 0x1p-8 + 0x1p-40, 1.0 + 0x1p-8, 1e300, -0x1.fffffffffffffp127, 0.1};
  const std::vector<TensorSlice> slices{{"f32", {9}, {0}, ConstTensor(x.data(), {9}, DType::f32)},
                                        {"f64", {5}, {0}, ConstTensor(y.data(), {5}, DType::f64)}};
  const CheckpointReader reader(save(1, slices).path);
  std::vector<uint16_t> half(9);
  std::vector<double> wide(9);
  reader.read("f32", std::vector<int64_t>{0}, Tensor(half.data(), {9}, DType::bf16));
  EXPECT_THAT(std::vector<uint16_t>(half.begin(), half.end() - 1),
              ElementsAre(0x0000, 0x8000, 0x3F80, 0x3F80, 0x3F82, 0x7F80, 0x0001, 0x7F80));
  EXPECT_EQ(half[8] & 0x7F80, 0x7F80);
  EXPECT_NE(half[8] & 0x007F, 0);
  reader.read("f32", std::vector<int64_t>{0}, Tensor(wide.data(), {9}, DType::f64));
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(wide[i], static_cast<double>(x[i]));
  // A tie for float, but not for double: rounding in two steps would give 0x3F80.
  reader.read("f64", std::vector<int64_t>{0}, Tensor(half.data(), {5}, DType::bf16));
  EXPECT_THAT(std::vector<uint16_t>(half.begin(), half.begin() + 5),
              ElementsAre(0x3F81, 0x3F80, 0x7F80, 0xFF80, 0x3DCD));
  std::vector<float> narrow(5);
  reader.read("f64", std::vector<int64_t>{0}, Tensor(narrow.data(), {5}, DType::f32));
  EXPECT_EQ(narrow[4], 0.1f);
}

TEST_F(CheckpointTest, BadReadsReportWhatIsWrong) {
  auto tensors = sample_tensors(1);
  const CheckpointReader reader(save(1, deal(tensors, 1, 0)).path);
  std::vector<double> memory(2000);
  const auto read = [&](const std::string& name, std::vector<int64_t> offset, const Tensor& out) {
    return thrown([&] { reader.read(name, offset, out); });
  };
  EXPECT_THAT(read("nothing", {0}, Tensor(memory.data(), {1}, DType::f64)), HasSubstr("has no tensor nothing"));
  EXPECT_THAT(read("optim/steps", {0}, Tensor(memory.data(), {7}, DType::f64)),
              HasSubstr("stored as int64 and cannot be read as float64"));
  EXPECT_THAT(read("state/cursor", {0, 0}, Tensor(memory.data(), {3, 9}, DType::i64)), HasSubstr("stored as int32"));
  EXPECT_THAT(read("model/norm.weight", {20}, Tensor(memory.data(), {5}, DType::f32)),
              HasSubstr("is outside the tensor"));
  EXPECT_THAT(read("model/norm.weight", {-1}, Tensor(memory.data(), {5}, DType::f32)),
              HasSubstr("is outside the tensor"));
  EXPECT_THAT(read("model/norm.weight", {0, 0}, Tensor(memory.data(), {5, 1}, DType::f32)), HasSubstr("2 offsets"));
  EXPECT_EQ(read("model/norm.weight", {24}, Tensor(memory.data(), {0}, DType::f32)), "");
  EXPECT_THAT(thrown<UserError>([&] { CheckpointReader(folder / "absent"); }),
              HasSubstr("no such checkpoint or run directory"));
  EXPECT_THAT(thrown<UserError>([&] { CheckpointReader(folder.path()); }), HasSubstr("has no manifest.json"));
}

TEST_F(CheckpointTest, BadSlicesAreRefusedBeforeAnythingIsWritten) {
  Logical x("x", DType::f32, {4, 4}, 1), other("x", DType::f64, {4, 4}, 1), folder_name("x/y", DType::f32, {2}, 1);
  const auto refused = [&](const std::vector<TensorSlice>& slices) { return thrown([&] { save(1, slices); }); };
  EXPECT_THAT(refused({slice_of(x, {{0, 0}, {4, 3}})}), HasSubstr("tensor x [4, 4]: the slices leave a hole, 4 of 16"));
  EXPECT_THAT(refused({slice_of(x, {{0, 0}, {4, 3}}), slice_of(x, {{3, 2}, {1, 2}})}), HasSubstr("overlap"));
  EXPECT_THAT(refused({slice_of(x, {{0, 0}, {4, 4}}), slice_of(x, {{0, 0}, {4, 4}})}), HasSubstr("overlap"));
  EXPECT_THAT(refused({slice_of(x, {{0, 0}, {2, 4}}), slice_of(other, {{2, 0}, {2, 4}})}),
              HasSubstr("on a lower rank"));
  EXPECT_THAT(refused({{"x", {4, 4}, {1, 0}, x.view()}}), HasSubstr("is outside the tensor"));
  EXPECT_THAT(refused({{"x", {4, 4}, {0}, x.view()}}), HasSubstr("has another rank"));
  EXPECT_THAT(refused({{"../x", {4, 4}, {0, 0}, x.view()}}), HasSubstr("empty component"));
  EXPECT_THAT(refused({{"", {4, 4}, {0, 0}, x.view()}}), HasSubstr("empty name"));
  EXPECT_THAT(refused({{"x", {4, 4}, {0, 0}, ConstTensor()}}), HasSubstr("has no data"));
  EXPECT_THAT(refused({{"x", {4, 4, 1}, {0, 0, 0}, Tensor(x.bytes.data(), {4, 4, 1}, DType::f32)}}),
              HasSubstr("1 or 2 sizes"));
  EXPECT_THAT(refused({{"x", {4, 0}, {0, 0}, Tensor(x.bytes.data(), {4, 0}, DType::f32)}}),
              HasSubstr("not all positive"));
  EXPECT_THAT(refused({{"x", {2, 2}, {0, 0}, x.view().split(1, 2, 2).select(2, 0).slice(0, 0, 2)}}),
              HasSubstr("gaps inside"));
  EXPECT_THAT(refused({slice_of(x, {{0, 0}, {4, 4}}), slice_of(folder_name, {{0}, {2}})}),
              HasSubstr("has the name of the directory of tensor x/y"));
  const auto state = [&](const nlohmann::json& bad) {
    return thrown([&] { save_checkpoint(self, folder.path(), 1, {}, bad, {}); });
  };
  EXPECT_THAT(state({{"loss", NAN}}), HasSubstr("not finite"));
  EXPECT_THAT(state({{"text", "\xff\xfe"}}), HasSubstr("cannot be written as JSON"));
  EXPECT_THAT(thrown([&] { save(-1, {}); }), HasSubstr("step -1"));
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
}

TEST_F(CheckpointTest, AStateWithoutTensorsAndLongStepsWork) {
  const int64_t step = 123456789012;
  EXPECT_EQ(save(step, {}).path, folder / "step-123456789012");
  const CheckpointReader reader(folder / "step-123456789012");
  EXPECT_TRUE(reader.tensors().empty());
  EXPECT_THAT(reader.verify(), IsEmpty());
  save_small(99999999);
  EXPECT_THAT(list_checkpoints(folder.path()), ElementsAre(folder / "step-99999999", folder / "step-123456789012"));
}

TEST_F(CheckpointTest, KeepsTheLatestAndEveryNth) {
  for (int64_t step = 100; step <= 1000; step += 100) save_small(step, {.keep = 2, .keep_every = 400});
  EXPECT_THAT(names_in(folder.path()),
              ElementsAre("latest", "step-00000400", "step-00000800", "step-00000900", "step-00001000"));
  EXPECT_EQ(file_text(folder / "latest"), "step-00001000\n");
  // A run that went back: what it has just saved stays, whatever lies ahead.
  save_small(150, {.keep = 1, .keep_every = 400});
  EXPECT_THAT(names_in(folder.path()), ElementsAre("latest", "step-00000150", "step-00000400", "step-00000800"));
  EXPECT_EQ(file_text(folder / "latest"), "step-00000150\n");
}

TEST_F(CheckpointTest, AStepThatIsThereIsReplaced) {
  Logical old_x("x", DType::f32, {5}, 1), new_x("x", DType::f32, {5}, 2);
  save(10, std::vector{slice_of(old_x, {{0}, {5}})});
  save(10, std::vector{slice_of(new_x, {{0}, {5}})});
  EXPECT_EQ(read_whole(CheckpointReader(folder / "step-00000010"), new_x), new_x.bytes);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("latest", "step-00000010"));
}

TEST_F(CheckpointTest, LeftOversOfCrashesAreRemovedByTheNextSave) {
  fs::create_directories(folder / "step-00000005.tmp-0123456789abcdef/sub");
  put_text(folder / "step-00000005.tmp-0123456789abcdef/rank-00000.h5", "half");
  put_text(folder / "latest.tmp-0123456789abcdef", "half");
  fs::create_directories(folder / "step-00000006.damaged");
  fs::create_directories(folder / "notes.tmp-1");
  save_small(7);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("latest", "notes.tmp-1", "step-00000006.damaged", "step-00000007"));
}

TEST_F(CheckpointTest, ACheckpointSetAsideByACrashComesBack) {
  save_small(3);
  fs::rename(folder / "step-00000003", folder / "step-00000003.old-0123456789abcdef");
  const auto never = [](const fs::path&, const std::string& problem) { ADD_FAILURE() << problem; };
  EXPECT_EQ(latest_checkpoint(folder.path(), never), folder / "step-00000003");
  EXPECT_THAT(names_in(folder.path()), ElementsAre("latest", "step-00000003"));
}

TEST_F(CheckpointTest, TheLatestCompleteOneIsUsedAndDamagedOnesAreSetAside) {
  std::vector<std::string> told;
  const auto on_damage = [&](const fs::path& path, const std::string& problem) {
    told.push_back(path.filename().string() + ": " + problem);
  };
  EXPECT_EQ(latest_checkpoint(folder.path(), on_damage), std::nullopt);
  EXPECT_EQ(latest_checkpoint(folder / "absent", on_damage), std::nullopt);
  for (int64_t step : {1, 2, 3, 4, 5}) save_small(step);
  fs::remove(folder / "step-00000005/manifest.json");              // invisible
  fs::resize_file(folder / "step-00000004/rank-00000.h5", 100);    // cut short
  fs::rename(folder / "step-00000003", folder / "step-00000006");  // wrong name
  std::string text = file_text(folder / "step-00000002/rank-00000.h5");
  text.back() = static_cast<char>(text.back() ^ 1);
  put_text(folder / "step-00000002/rank-00000.h5", text);
  fs::create_directories(folder / "step-00000004.damaged");
  EXPECT_EQ(latest_checkpoint(folder.path(), on_damage), folder / "step-00000001");
  EXPECT_THAT(told, ElementsAre(HasSubstr("the manifest is of step 3"), HasSubstr("has 100 bytes"),
                                AllOf(HasSubstr("step-00000002: "), HasSubstr("rank-00000.h5"), HasSubstr("damaged"))));
  EXPECT_THAT(names_in(folder.path()),
              ElementsAre("latest", "step-00000001", "step-00000002.damaged", "step-00000004.damaged",
                          "step-00000004.damaged-2", "step-00000005", "step-00000006.damaged"));
}

TEST_F(CheckpointTest, NamesOfStepsAreStrict) {
  EXPECT_EQ(checkpoint_name(0), "step-00000000");
  EXPECT_EQ(step_of_name("step-00001000"), 1000);
  EXPECT_EQ(step_of_name("step-123456789012"), 123456789012);
  for (const char* name : {"step-1000", "step-000001000", "step-", "step-0000100x", "step-00001000.tmp-1",
                           "step--0000001", "Step-00001000", "step-99999999999999999999", "step-00001000 "}) {
    EXPECT_EQ(step_of_name(name), std::nullopt) << name;
  }
}

TEST_F(CheckpointTest, ManyThreadsMayRead) {
  auto tensors = sample_tensors(2);
  const CheckpointReader reader(save(1, deal(tensors, 6, 4)).path);
  std::atomic<int> wrong{0};
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (const Logical& tensor : tensors) wrong += read_whole(reader, tensor) != tensor.bytes;
      });
    }
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace tmamba
