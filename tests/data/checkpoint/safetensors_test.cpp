// safetensors files from strangers: what is not proper is refused, and the message says why.
#include "data/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/checkpoint/tensor_source.h"
#include "kernels/base/buffer.h"
#include "tests/data/checkpoint/checkpoint_fixture.h"
#include "tests/trials.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string with_length(const std::string& header, uint64_t length) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(length >> (8 * i) & 0xFF);
  return out + header;
}

std::string file_of(const std::string& header, size_t data_bytes) {
  return with_length(header, header.size()) + std::string(data_bytes, 'x');
}

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

class Safetensors : public testing::Test {
 protected:
  std::string refused(const std::string& bytes) {
    const fs::path file = folder / "f.safetensors";
    put_text(file, bytes);
    const std::string message = thrown<UserError>([&] { SafetensorsReader reader(file); });
    if (!message.empty()) {
      EXPECT_THAT(message, HasSubstr(file.string()));
    }
    return message;
  }
  TempFolder folder{TempFolder::memory()};
};

TEST_F(Safetensors, ProperFilesAreRead) {
  const std::string a = tensor("\"F32\"", "[2,3]", "[0,24]"), b = tensor("\"U8\"", "[5]", "[24,29]");
  EXPECT_EQ(refused(file_of("{\"a\":" + a + ",\"b\":" + b + "}", 29)), "");
  EXPECT_EQ(refused(file_of("{\"b\":" + b + ",\"__metadata__\":{\"x\":\"y\"},\"a\":" + a + "}   ", 29)), "");
  EXPECT_EQ(refused(file_of("{}", 0)), "");
}

TEST_F(Safetensors, MalformedOnesAreRefusedAndNamed) {
  const std::string good = tensor("\"F32\"", "[2,3]", "[0,24]");
  const auto one = [&](const std::string& entry, size_t bytes = 24) {
    return refused(file_of("{\"a\":" + entry + "}", bytes));
  };
  EXPECT_EQ(one(good), "");
  EXPECT_THAT(refused(""), HasSubstr("too few"));
  EXPECT_THAT(refused("1234567"), HasSubstr("too few"));
  EXPECT_THAT(refused(with_length("{}", 3)), HasSubstr("claims 3 bytes"));
  EXPECT_THAT(refused(with_length("{}", UINT64_MAX)), HasSubstr("the limit is 100000000"));
  EXPECT_THAT(refused(with_length("{}", 100000001)), HasSubstr("the limit is 100000000"));
  EXPECT_THAT(refused(with_length("{}", 0)), HasSubstr("does not begin with {"));
  EXPECT_THAT(refused(file_of("[]", 0)), HasSubstr("does not begin with {"));
  EXPECT_THAT(refused(file_of(" {}", 0)), HasSubstr("does not begin with {"));
  EXPECT_THAT(refused(file_of("{", 0)), HasSubstr("not valid JSON"));
  EXPECT_THAT(refused(file_of("{}}", 0)), HasSubstr("not valid JSON"));
  EXPECT_THAT(refused(file_of("{\"a\xff\":1}", 0)), HasSubstr("not valid JSON"));
  EXPECT_THAT(refused(file_of("{\"a\":" + good + ",\"a\":" + good + "}", 24)), HasSubstr("twice"));
  EXPECT_THAT(refused(file_of("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 24)), HasSubstr("twice"));
  EXPECT_THAT(refused(file_of("{\"__metadata__\":{\"x\":1}}", 0)), HasSubstr("not a string"));
  EXPECT_THAT(refused(file_of("{\"__metadata__\":[]}", 0)), HasSubstr("not an object"));
  std::string deep = "1";
  for (int i = 0; i < 100000; ++i) deep = "[" + deep + "]";
  EXPECT_THAT(one(deep), HasSubstr("deeper"));
  for (const char* entry : {"1", "[]", "{}", "{\"dtype\":\"F32\"}", "null"})
    EXPECT_THAT(one(entry), HasSubstr("must have")) << entry;
  EXPECT_THAT(one(tensor("\"F16\"", "[2,3]", "[0,12]"), 12), HasSubstr("F16"));
  EXPECT_THAT(one(tensor("\"f32\"", "[2,3]", "[0,24]")), HasSubstr("dtype"));
  EXPECT_THAT(one(tensor("7", "[2,3]", "[0,24]")), HasSubstr("dtype"));
  EXPECT_THAT(one(tensor("\"F32\"", "6", "[0,24]")), HasSubstr("not a list"));
  EXPECT_THAT(one(tensor("\"F32\"", "[]", "[0,4]"), 4), HasSubstr("0 sizes"));
  EXPECT_THAT(one(tensor("\"F32\"", "[1,2,3]", "[0,24]")), HasSubstr("3 sizes"));
  EXPECT_THAT(one(tensor("\"F32\"", "[-2,-3]", "[0,24]")), HasSubstr("shape is not a non-negative integer"));
  EXPECT_THAT(one(tensor("\"F32\"", "[2.0,3]", "[0,24]")), HasSubstr("shape is not a non-negative integer"));
  EXPECT_THAT(one(tensor("\"F32\"", "[0,3]", "[0,0]"), 0), HasSubstr("not all positive"));
  EXPECT_THAT(one(tensor("\"F32\"", "[4294967296,4294967296]", "[0,24]")), HasSubstr("too large"));
  EXPECT_THAT(one(tensor("\"F32\"", "[18446744073709551615]", "[0,24]")),
              HasSubstr("shape is not a non-negative integer"));
  EXPECT_THAT(one(tensor("\"F32\"", "[2,3]", "[0,20]")), HasSubstr("24 bytes"));
  EXPECT_THAT(one(tensor("\"F32\"", "[2,3]", "[24,0]")), HasSubstr("24 bytes"));
  EXPECT_THAT(one(tensor("\"F32\"", "[2,3]", "[0]")), HasSubstr("list of two"));
  EXPECT_THAT(one(tensor("\"F32\"", "[2,3]", "[-24,0]")), HasSubstr("data_offsets"));
  EXPECT_THAT(one(tensor("\"F32\"", "[2,3]", "[8,32]"), 32), HasSubstr("hole of 8"));
  EXPECT_THAT(one(good, 23), HasSubstr("truncated"));
  EXPECT_THAT(one(good, 25), HasSubstr("truncated or was changed"));
  const std::string overlap = tensor("\"F32\"", "[2,3]", "[20,44]");
  EXPECT_THAT(refused(file_of("{\"a\":" + good + ",\"b\":" + overlap + "}", 44)), HasSubstr("overlaps"));
  EXPECT_THAT(refused(file_of("{\"a\":" + good + ",\"b\":" + good + "}", 24)), HasSubstr("overlaps"));
  EXPECT_THAT(refused(file_of("{\"../a\":" + good + "}", 24)), HasSubstr(".."));
  EXPECT_THAT(refused(file_of("{\"\":" + good + "}", 24)), HasSubstr("empty name"));
}

// Random damage to the header of a good file: refused, or the same tensors in other words.
TEST_F(Safetensors, DamagedHeadersNeverReadBeyondTheFile) {
  const std::string header =
      "{\"a\":" + tensor("\"F32\"", "[2,3]", "[0,24]") + ",\"b\":" + tensor("\"BF16\"", "[4]", "[24,32]") + "}";
  const std::string good = file_of(header, 32);
  const uint64_t seed = trial_seed(5);
  std::mt19937_64 random(seed);
  int refusals = 0;
  const int all = trials(2000);
  for (int trial = 0; trial < all; ++trial) {
    std::string bad = good;
    const size_t at = random() % (8 + header.size());
    bad[at] = static_cast<char>(bad[at] ^ (1 << (random() % 8)));
    put_text(folder / "f.safetensors", bad);
    try {
      const SafetensorsReader reader(folder / "f.safetensors");
      for (const StoredTensor& stored : reader.tensors()) {
        std::vector<char> bytes(static_cast<size_t>(checked_bytes(stored.shape, stored.dtype)));
        reader.read(stored.name, 0, bytes.data(), bytes.size());
      }
    } catch (const UserError&) {
      ++refusals;
    }
  }
  EXPECT_GT(refusals, all / 2) << "seed " << seed;
}

TEST_F(Safetensors, ForeignOnesAreNoCheckpoint) {
  put_text(folder / "f.safetensors", file_of("{\"a\":" + tensor("\"U8\"", "[2]", "[0,2]") + "}", 2));
  EXPECT_THAT(thrown<UserError>([&] { open_export(folder / "f.safetensors"); }), HasSubstr("transmamba.step"));
  EXPECT_THAT(thrown<UserError>([&] { open_export(folder / "f.txt"); }), HasSubstr(".safetensors"));
}

TEST_F(Safetensors, EveryTypeComesBackInBothFormsAndOneFileOrMany) {
  auto tensors = sample_tensors(9);
  TensorSource source{.path = "memory", .step = 12, .state = {{"x", 0.1}}, .tensors = {}, .read = {}};
  for (const Logical& logical : tensors) source.tensors.push_back({logical.name, logical.dtype, logical.shape});
  source.read = [&](const std::string& name, int64_t row, const Tensor& out) {
    for (Logical& logical : tensors) {
      if (logical.name != name) continue;
      copy_blocking(out, logical.view().slice(0, row, out.size(0)));
    }
  };
  for (const char* name : {"m.h5", "m.safetensors"}) {
    const fs::path file = folder / name;
    export_tensors(source, file);
    for (int64_t writers : {1, 3, 1000}) {
      const fs::path path = write_checkpoint(open_export(file), folder / str(name, ".", writers), writers);
      const CheckpointReader reader(path);
      EXPECT_EQ(reader.step(), 12);
      EXPECT_EQ(reader.state(), source.state);
      EXPECT_TRUE(reader.verify().empty());
      for (const Logical& logical : tensors) EXPECT_EQ(read_whole(reader, logical), logical.bytes) << logical.name;
    }
  }
  EXPECT_EQ(names_in(folder.path()).size(), 8u);  // no temporary file stays
}

}  // namespace
}  // namespace tmamba
