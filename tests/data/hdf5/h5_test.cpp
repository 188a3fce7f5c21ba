// HDF5 wrapper: round trips, and every kind of file that must be refused. Hostile files are made with the plain C
// library.
#include "data/hdf5/h5.h"

#include <gtest/gtest.h>
#include <hdf5.h>

#include <array>
#include <cstring>
#include <numeric>
#include <random>

#include "kernels/base/buffer.h"
#include "tests/data/temp_folder.h"
#include "tests/source_dir.h"

// HDF5 leaks when it meets a damaged file.
// NOLINTNEXTLINE(bugprone-reserved-identifier): the sanitizer's name
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

namespace tmamba {
namespace {
using testing_files::read_file;
using testing_files::TempFolder;
using testing_files::write_file;

std::vector<float> ramp(int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), 1.0f);
  return values;
}

TEST(H5, WholeTensorsOfEveryTypeComeBack) {
  const TempFolder folder;
  const std::array<DType, 7> types{DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::u16, DType::u8};
  std::mt19937_64 random(1);
  std::vector<Buffer> buffers;
  auto file = H5File::create(folder / "a.h5");
  for (DType type : types) {
    buffers.emplace_back(std::initializer_list<int64_t>{5, 7}, type);
    auto* bytes = static_cast<uint8_t*>(buffers.back().data());
    // Small integers: valid numbers in every type, and no NaN.
    for (size_t i = 0; i < buffers.back().bytes(); ++i) bytes[i] = static_cast<uint8_t>(random() % 60);
    file.write(str("group/", name_of(type)), buffers.back().tensor({5, 7}, type));
  }
  file.close();

  const auto back = H5File::open_read(folder / "a.h5");
  EXPECT_EQ(back.datasets().size(), types.size());
  for (size_t i = 0; i < types.size(); ++i) {
    Buffer out({5, 7}, types[i]);
    const auto dataset = back.dataset(str("group/", name_of(types[i])));
    EXPECT_EQ(dataset.info().shape, (std::vector<int64_t>{5, 7}));
    EXPECT_EQ(dataset.info().type, h5_type(types[i]));
    dataset.read(std::array<int64_t, 2>{0, 0}, out.tensor({5, 7}, types[i]));
    EXPECT_EQ(std::memcmp(out.data(), buffers[i].data(), 35 * size_of(types[i])), 0) << name_of(types[i]);
  }
}

TEST(H5, RectanglesAndRowsWithGaps) {
  const TempFolder folder;
  auto values = ramp(6 * 10);
  const Tensor all(values.data(), {6, 10}, DType::f32);
  auto file = H5File::create(folder / "a.h5");
  auto dataset = file.create_dataset("x", H5Type::f32, {6, 4});
  dataset.write(std::array<int64_t, 2>{0, 0}, all.slice(1, 3, 4).slice(0, 0, 2));  // row stride 10
  dataset.write(std::array<int64_t, 2>{2, 0}, all.slice(1, 3, 4).slice(0, 2, 4));
  file.close();

  const auto back = H5File::open_read(folder / "a.h5").dataset("x");  // the dataset keeps the file open
  std::vector<float> out(2 * 8, -1.0f);
  const Tensor padded(out.data(), {2, 8}, DType::f32);
  back.read(std::array<int64_t, 2>{3, 1}, padded.slice(1, 0, 2));
  EXPECT_EQ(out[0], 35.0f);  // row 3, column 3 + 1 of the ramp
  EXPECT_EQ(out[1], 36.0f);
  EXPECT_EQ(out[2], -1.0f);  // the gap is untouched
  EXPECT_EQ(out[8], 45.0f);
  EXPECT_THROW(back.read(std::array<int64_t, 2>{5, 1}, padded.slice(1, 0, 2)), Error);
  EXPECT_THROW(back.read(std::array<int64_t, 1>{0}, padded), Error);
}

TEST(H5, GrowsInChunksWithChecksums) {
  const TempFolder folder;
  const auto values = ramp(1000);
  auto file = H5File::create(folder / "a.h5");
  auto dataset = file.create_dataset("x", H5Type::f32, {0}, {.chunk = {64}, .growable = true, .fletcher32 = true});
  for (int64_t at = 0; at < 1000; at += 50) {
    dataset.grow(at + 50);
    dataset.write(std::array{at}, std::array<int64_t, 1>{50}, H5Type::f32, values.data() + at);
  }
  file.close();
  const auto back = H5File::open_read(folder / "a.h5").dataset("x");
  std::vector<float> out(1000);
  back.read(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{1000}, H5Type::f32, out.data());
  EXPECT_EQ(out, values);
  EXPECT_TRUE(back.info().fletcher32);
  EXPECT_EQ(back.info().chunk, std::vector<int64_t>{64});
}

TEST(H5, AChecksumFindsAFlippedByte) {
  const TempFolder folder;
  std::vector<uint8_t> marker(4096, 0xAB);
  auto file = H5File::create(folder / "a.h5");
  file.create_dataset("x", H5Type::u8, {4096}, {.chunk = {4096}, .fletcher32 = true})
      .write(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{4096}, H5Type::u8, marker.data());
  file.close();
  std::string bytes = read_file(folder / "a.h5");
  const size_t at = bytes.find(std::string(64, '\xAB'));
  ASSERT_NE(at, std::string::npos);
  bytes[at + 1000] = '\x12';
  write_file(folder / "a.h5", bytes);
  const auto back = H5File::open_read(folder / "a.h5").dataset("x");
  EXPECT_MESSAGE(UserError, "Fletcher32",
                 back.read(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{4096}, H5Type::u8, marker.data()));
}

TEST(H5, AttributesComeBack) {
  const TempFolder folder;
  auto file = H5File::create(folder / "a.h5");
  auto values = ramp(3);
  file.write("g/x", ConstTensor(values.data(), {3}, DType::f32));
  file.set_attribute("/", "name", "caf\xC3\xA9");
  file.set_attribute("/", "empty", std::string());
  file.set_attribute("/", "steps", int64_t{-7});
  file.set_attribute("/", "steps", int64_t{-8});  // written over
  file.set_attribute("g/x", "scale", 0.5);
  file.close();
  const auto back = H5File::open_read(folder / "a.h5");
  EXPECT_EQ(back.string_attribute("/", "name"), "caf\xC3\xA9");
  EXPECT_EQ(back.string_attribute("/", "empty"), "");
  EXPECT_EQ(back.int_attribute("/", "steps"), -8);
  EXPECT_EQ(back.double_attribute("g/x", "scale"), 0.5);
  EXPECT_EQ(back.attributes("/"), (std::vector<std::string>{"empty", "name", "steps"}));
  EXPECT_TRUE(back.has_attribute("g/x", "scale"));
  EXPECT_FALSE(back.has_attribute("g", "scale"));
  EXPECT_MESSAGE(UserError, "has no attribute missing", back.int_attribute("/", "missing"));
  EXPECT_MESSAGE(UserError, "is not one integer", back.int_attribute("/", "name"));
  EXPECT_MESSAGE(UserError, "is not a string", back.string_attribute("/", "steps"));
}

TEST(H5, ReadsTheGoldenFiles) {
  const auto file = H5File::open_read(std::filesystem::path(TMAMBA_SOURCE_DIR) / "tests/golden/tiny_v9.h5");
  EXPECT_TRUE(file.has("params/embedding.weight"));
  EXPECT_FALSE(file.has("params/embedding.weight/more"));
  EXPECT_GT(file.datasets().size(), 100u);
  double loss = 0;
  const auto dataset = file.dataset("loss");
  if (dataset.info().shape.empty()) {
    dataset.read({}, {}, H5Type::f64, &loss);
  } else {
    dataset.read(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{1}, H5Type::f64, &loss);
  }
  EXPECT_GT(loss, 1.0);
  for (const auto& name : file.datasets()) EXPECT_GE(file.dataset(name).info().numel(), 1) << name;
}

TEST(H5, RefusesWhatIsNotAnHdf5File) {
  const TempFolder folder;
  EXPECT_MESSAGE(UserError, "no such file", H5File::open_read(folder / "missing.h5"));
  EXPECT_MESSAGE(UserError, "is a directory", H5File::open_read(folder.path()));
  EXPECT_MESSAGE(UserError, "is empty", H5File::open_read(write_file(folder / "empty", "")));
  EXPECT_MESSAGE(UserError, "not an HDF5 file", H5File::open_read(write_file(folder / "text", "hello, world")));
  EXPECT_MESSAGE(UserError, "not a regular file", H5File::open_read("/dev/null"));
}

// --- Files from strangers, made with the C library ---

class Hostile : public ::testing::Test {
 protected:
  // Creates FOLDER/NAME with one valid dataset "good", and calls `add` for the rest.
  template <class F>
  std::filesystem::path make(const std::string& name, F&& add) {
    const auto path = folder_ / name;
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    EXPECT_GE(file, 0);
    const hid_t good = dataset(file, "good", H5T_STD_U16LE, {1000}, H5P_DEFAULT);
    std::vector<uint16_t> values(1000, 7);
    EXPECT_GE(H5Dwrite(good, H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
    H5Dclose(good);
    add(file);
    EXPECT_GE(H5Fclose(file), 0);
    EXPECT_EQ(H5File::open_read(path).dataset("good").info().numel(), 1000);
    return path;
  }

  static hid_t dataset(hid_t file, const char* name, hid_t type, std::vector<hsize_t> shape, hid_t properties) {
    const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const hid_t id = H5Dcreate2(file, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    EXPECT_GE(id, 0);
    H5Sclose(space);
    return id;
  }

  TempFolder folder_;
};

TEST_F(Hostile, Links) {
  const auto path = make("links.h5", [&](hid_t file) {
    H5Lcreate_soft("/good", file, "soft", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_external("other.h5", "/secret", file, "external", H5P_DEFAULT, H5P_DEFAULT);
    H5Gclose(H5Gcreate2(file, "real", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Lcreate_hard(file, "good", file, "real/x", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_soft("/real", file, "detour", H5P_DEFAULT, H5P_DEFAULT);  // a link in the middle of a path
  });
  const auto file = H5File::open_read(path);
  EXPECT_MESSAGE(UserError, "soft link", file.dataset("soft"));
  EXPECT_MESSAGE(UserError, "external link", file.dataset("external"));
  EXPECT_MESSAGE(UserError, "soft link", file.dataset("detour/x"));
  EXPECT_MESSAGE(UserError, "soft link", file.int_attribute("detour", "x"));
  EXPECT_MESSAGE(UserError, "only hard links", file.datasets());
  EXPECT_EQ(file.dataset("real/x").info().numel(), 1000);
  EXPECT_MESSAGE(UserError, "has no dataset", file.dataset("missing/deeper"));
  EXPECT_MESSAGE(UserError, "is not a dataset", file.dataset("real"));
}

TEST_F(Hostile, LoopOfGroups) {
  const auto path = make("loop.h5", [&](hid_t file) {
    H5Gclose(H5Gcreate2(file, "a", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Lcreate_hard(file, "/", file, "a/up", H5P_DEFAULT, H5P_DEFAULT);
  });
  EXPECT_MESSAGE(UserError, "loop", H5File::open_read(path).datasets());
}

TEST_F(Hostile, VirtualDataset) {
  write_file(folder_ / "secret.h5", "");
  const auto path = make("virtual.h5", [&](hid_t file) {
    const hsize_t size = 1000;
    const hid_t space = H5Screate_simple(1, &size, nullptr), list = H5Pcreate(H5P_DATASET_CREATE);
    EXPECT_GE(H5Pset_virtual(list, space, "secret.h5", "good", space), 0);
    H5Dclose(dataset(file, "bad", H5T_STD_U16LE, {1000}, list));
    H5Pclose(list);
    H5Sclose(space);
  });
  EXPECT_MESSAGE(UserError, "is virtual", H5File::open_read(path).dataset("bad"));
}

TEST_F(Hostile, ExternalStorage) {
  const auto path = make("external.h5", [&](hid_t file) {
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    EXPECT_GE(H5Pset_external(list, "/etc/passwd", 0, 2000), 0);
    H5Dclose(dataset(file, "bad", H5T_STD_U8LE, {2000}, list));
    H5Pclose(list);
  });
  EXPECT_MESSAGE(UserError, "external file", H5File::open_read(path).dataset("bad"));
}

TEST_F(Hostile, CompactStorageAndStrangeTypes) {
  const auto path = make("types.h5", [&](hid_t file) {
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_layout(list, H5D_COMPACT);
    H5Dclose(dataset(file, "compact", H5T_STD_U8LE, {20}, list));
    H5Pclose(list);
    H5Dclose(dataset(file, "big_endian", H5T_STD_U16BE, {20}, H5P_DEFAULT));
    H5Dclose(dataset(file, "string", H5T_C_S1, {20}, H5P_DEFAULT));
    const hid_t variable = H5Tcopy(H5T_C_S1);
    H5Tset_size(variable, H5T_VARIABLE);
    H5Dclose(dataset(file, "variable", variable, {20}, H5P_DEFAULT));
    H5Tclose(variable);
    H5Dclose(dataset(file, "reference", H5T_STD_REF_OBJ, {20}, H5P_DEFAULT));
    const hid_t pair = H5Tcreate(H5T_COMPOUND, 4);
    H5Tinsert(pair, "a", 0, H5T_STD_U16LE);
    H5Tinsert(pair, "b", 2, H5T_STD_U16LE);
    H5Dclose(dataset(file, "compound", pair, {20}, H5P_DEFAULT));
    H5Tclose(pair);
  });
  const auto file = H5File::open_read(path);
  EXPECT_MESSAGE(UserError, "neither contiguously nor in chunks", file.dataset("compact"));
  for (const char* name : {"big_endian", "string", "variable", "reference", "compound"}) {
    EXPECT_MESSAGE(UserError, "element type that is not allowed", file.dataset(name));
  }
}

TEST_F(Hostile, DeclaredSizeBombs) {
  const auto path = make("bombs.h5", [&](hid_t file) {
    H5Dclose(dataset(file, "never_written", H5T_STD_U8LE, {hsize_t{1} << 40}, H5P_DEFAULT));
    hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    const hsize_t chunk = 1000;
    H5Pset_chunk(list, 1, &chunk);
    H5Dclose(dataset(file, "no_chunks", H5T_STD_U8LE, {hsize_t{1} << 40}, list));
    H5Dclose(dataset(file, "few_chunks", H5T_STD_U8LE, {1500}, list));
    H5Pset_deflate(list, 9);
    H5Dclose(dataset(file, "compressed", H5T_STD_U8LE, {hsize_t{1} << 40}, list));
    H5Pclose(list);
    list = H5Pcreate(H5P_DATASET_CREATE);
    const hsize_t huge = hsize_t{1} << 31;
    H5Pset_chunk(list, 1, &huge);
    H5Dclose(dataset(file, "huge_chunk", H5T_STD_U8LE, {huge}, list));
    H5Pset_chunk(list, 1, &chunk);
    H5Dclose(dataset(file, "overflow", H5T_STD_I64LE, {hsize_t{1} << 61}, list));
    H5Pclose(list);
  });
  const auto file = H5File::open_read(path);
  EXPECT_MESSAGE(UserError, "does not hold", file.dataset("never_written"));
  EXPECT_MESSAGE(UserError, "does not hold", file.dataset("no_chunks"));
  EXPECT_MESSAGE(UserError, "lacks 2 of its 2 chunks", file.dataset("few_chunks"));
  EXPECT_MESSAGE(UserError, "does not hold", file.dataset("compressed"));
  EXPECT_MESSAGE(UserError, "chunks of", file.dataset("huge_chunk"));
  EXPECT_MESSAGE(UserError, "impossible size", file.dataset("overflow"));
}

TEST_F(Hostile, ForeignFilter) {
  const auto path = make("filter.h5", [&](hid_t file) {
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    const hsize_t chunk = 1000;
    H5Pset_chunk(list, 1, &chunk);
    H5Pset_scaleoffset(list, H5Z_SO_INT, 4);
    H5Dclose(dataset(file, "bad", H5T_STD_U16LE, {1000}, list));
    H5Pclose(list);
  });
  EXPECT_MESSAGE(UserError, "allowed are shuffle, deflate and fletcher32", H5File::open_read(path).dataset("bad"));
}

TEST_F(Hostile, CorrectDeflateIsRead) {
  const auto path = make("deflate.h5", [](hid_t) {});
  {
    auto file = H5File::create(folder_ / "z.h5");
    std::vector<uint8_t> zeros(1 << 20);
    file.create_dataset("x", H5Type::u8, {1 << 20}, {.chunk = {1 << 16}, .fletcher32 = true, .deflate = 6})
        .write(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{1 << 20}, H5Type::u8, zeros.data());
    file.close();
  }
  EXPECT_EQ(H5File::open_read(folder_ / "z.h5").dataset("x").info().numel(), 1 << 20);
}

TEST_F(Hostile, TruncatedAnywhere) {
  const auto path = make("whole.h5", [](hid_t) {});
  const std::string bytes = read_file(path);
  for (size_t keep = 1; keep < bytes.size(); keep += 1 + bytes.size() / 200) {
    write_file(folder_ / "cut.h5", bytes.substr(0, keep));
    EXPECT_THROW(H5File::open_read(folder_ / "cut.h5").dataset("good"), UserError) << "kept " << keep << " bytes";
  }
}

// With checksums, damage ends in an error or in the numbers that were written, never in a crash or a hang.
TEST_F(Hostile, RandomDamageIsFoundOrHarmless) {
  std::vector<uint16_t> values(2000);
  std::iota(values.begin(), values.end(), uint16_t{1});
  auto made = H5File::create(folder_ / "whole.h5", H5Format::checksummed);
  made.create_dataset("group/x", H5Type::u16, {2000}, {.chunk = {500}, .fletcher32 = true})
      .write(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{2000}, H5Type::u16, values.data());
  made.set_attribute("group/x", "name", "value");
  made.close();
  const std::string whole = read_file(folder_ / "whole.h5");
  int refused = 0;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    std::mt19937_64 random(seed);
    std::string bytes = whole;
    for (int i = 0; i < 4; ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
    write_file(folder_ / "bad.h5", bytes);
    try {
      const auto file = H5File::open_read(folder_ / "bad.h5");
      ASSERT_EQ(file.datasets(), std::vector<std::string>{"group/x"}) << "seed " << seed;
      std::vector<uint16_t> out(2000);
      file.dataset("group/x").read(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{2000}, H5Type::u16, out.data());
      ASSERT_EQ(out, values) << "seed " << seed;
      ASSERT_EQ(file.string_attribute("group/x", "name"), "value") << "seed " << seed;
    } catch (const UserError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace tmamba
