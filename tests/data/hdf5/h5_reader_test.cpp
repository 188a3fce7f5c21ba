// The reader of HDF5 files against the HDF5 library that wrote them: every index of chunks, every filter, any
// rectangle.
#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <random>
#include <vector>

#include "data/hdf5/h5.h"
#include "tests/data/temp_folder.h"

namespace tmamba {
namespace {

using testing_files::TempFolder;

struct Case {
  std::vector<int64_t> shape;
  H5DatasetOptions options;
};

std::vector<int64_t> strides_of(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

// Reads `rounds` random rectangles and compares them number by number.
void compare(const H5Dataset& dataset, const std::vector<uint16_t>& values, int rounds, uint64_t seed) {
  const auto& shape = dataset.info().shape;
  const auto strides = strides_of(shape);
  std::mt19937_64 random(seed);
  for (int round = 0; round < rounds; ++round) {
    std::vector<int64_t> offset, count;
    int64_t elements = 1;
    for (int64_t size : shape) {
      offset.push_back(round == 0 ? 0 : static_cast<int64_t>(random() % static_cast<uint64_t>(size)));
      const auto most = static_cast<uint64_t>(size - offset.back());
      count.push_back(round == 0 ? size : 1 + static_cast<int64_t>(random() % most));
      elements *= count.back();
    }
    std::vector<uint16_t> out(static_cast<size_t>(elements));
    dataset.read(offset, count, H5Type::u16, out.data());
    for (int64_t i = 0; i < elements; ++i) {
      int64_t rest = i, at = 0;
      for (size_t d = shape.size(); d-- > 0;) {
        at += (offset[d] + rest % count[d]) * strides[d];
        rest /= count[d];
      }
      ASSERT_EQ(out[static_cast<size_t>(i)], values[static_cast<size_t>(at)]) << "round " << round << ", seed " << seed;
    }
  }
}

TEST(H5Reader, ReadsWhatTheLibraryWrote) {
  const TempFolder folder;
  const std::vector<Case> cases = {{{1000}, {}},
                                   {{30, 20}, {}},
                                   {{1000}, {.chunk = {1000}}},
                                   {{1000}, {.chunk = {1000}, .fletcher32 = true, .deflate = 6}},
                                   {{1000}, {.chunk = {7}, .fletcher32 = true}},
                                   {{1000}, {.chunk = {64}, .growable = true, .fletcher32 = true, .deflate = 1}},
                                   {{5000}, {.chunk = {1}}},                    // an array in pages
                                   {{3000}, {.chunk = {1}, .deflate = 1}},      // the same, of entries with sizes
                                   {{3000}, {.chunk = {1}, .growable = true}},  // growing blocks, and tables of them
                                   {{33, 21}, {.chunk = {4, 5}, .deflate = 6}},
                                   {{33, 21}, {.chunk = {4, 5}, .growable = true, .fletcher32 = true}},
                                   {{7, 9, 11}, {.chunk = {2, 3, 4}, .growable = true, .deflate = 3}},
                                   {{7, 9, 11}, {.chunk = {9, 9, 11}, .growable = true}}};
  for (const H5Format format : {H5Format::earliest, H5Format::checksummed}) {
    for (size_t i = 0; i < cases.size(); ++i) {
      const Case& c = cases[i];
      SCOPED_TRACE(testing::Message() << "case " << i << ", format " << static_cast<int>(format));
      const int64_t elements = std::accumulate(c.shape.begin(), c.shape.end(), int64_t{1}, std::multiplies<>());
      std::vector<uint16_t> values(static_cast<size_t>(elements));
      std::mt19937_64 random(i);
      for (uint16_t& value : values) value = static_cast<uint16_t>(random() % 500);
      {
        auto file = H5File::create(folder / "x.h5", format);
        file.create_dataset("a/b/x", H5Type::u16, c.shape, c.options)
            .write(std::vector<int64_t>(c.shape.size(), 0), c.shape, H5Type::u16, values.data());
        file.close();
      }
      const auto dataset = H5File::open_read(folder / "x.h5").dataset("a/b/x");
      ASSERT_EQ(dataset.info().shape, c.shape);
      compare(dataset, values, 20, i);
    }
  }
}

// So many chunks that blocks of their index are in pages.
TEST(H5Reader, ReadsAnIndexOfAHundredThousandChunks) {
  const TempFolder folder;
  std::vector<uint16_t> values(140000);
  std::iota(values.begin(), values.end(), uint16_t{0});
  auto file = H5File::create(folder / "x.h5", H5Format::checksummed);
  file.create_dataset("x", H5Type::u16, {std::ssize(values)}, {.chunk = {1}, .growable = true})
      .write(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{std::ssize(values)}, H5Type::u16, values.data());
  file.close();
  compare(H5File::open_read(folder / "x.h5").dataset("x"), values, 2, 1);
}

TEST(H5Reader, ConvertsToTheNearestNumber) {
  const TempFolder folder;
  const std::vector<double> numbers{-1e30, -1.5, 0, 0.25, 255, 256, 65535.9, 1e30, NAN};
  const std::vector<int64_t> integers{INT64_MIN, -1, 0, 255, 256, 65536, INT64_MAX};
  auto file = H5File::create(folder / "x.h5");
  file.write("numbers", ConstTensor(numbers.data(), {std::ssize(numbers)}, DType::f64));
  file.write("integers", ConstTensor(integers.data(), {std::ssize(integers)}, DType::i64));
  file.close();
  const auto back = H5File::open_read(folder / "x.h5");
  const auto read = [&](const char* name, auto kind, H5Type type, int64_t count) {
    std::vector<decltype(kind)> out(static_cast<size_t>(count));
    back.dataset(name).read(std::array<int64_t, 1>{0}, std::array{count}, type, out.data());
    return out;
  };
  EXPECT_EQ(read("numbers", uint8_t{}, H5Type::u8, 9), (std::vector<uint8_t>{0, 0, 0, 0, 255, 255, 255, 255, 0}));
  EXPECT_EQ(read("numbers", int32_t{}, H5Type::i32, 8),
            (std::vector<int32_t>{INT32_MIN, -1, 0, 0, 255, 256, 65535, INT32_MAX}));
  EXPECT_EQ(read("integers", uint16_t{}, H5Type::u16, 7), (std::vector<uint16_t>{0, 0, 0, 255, 256, 65535, 65535}));
  EXPECT_EQ(read("integers", double{}, H5Type::f64, 7)[3], 255.0);
}

}  // namespace
}  // namespace tmamba
