// Invalid manifests: each is refused with a message that names the reason.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "data/io/fs.h"
#include "data/io/sha256.h"
#include "dist/comm/self_communicator.h"
#include "tests/data/checkpoint/checkpoint_fixture.h"

namespace tmamba {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr const char* kSeal = ",\n \"sha256\": \"";

// A manifest with this body and a proper seal.
std::string sealed(std::string body) {
  body.resize(body.rfind('}'));
  while (!body.empty() && std::isspace(static_cast<unsigned char>(body.back()))) body.pop_back();
  return body + kSeal + sha256_hex(body) + "\"\n}\n";
}

std::string sealed_json(const json& body) { return sealed(body.dump(1)); }

// Two tensors in two files: a [4, 4] in four quarters, b [6] whole.
json good() {
  const auto slice = [](int file, const char* dataset, int64_t position, std::vector<int64_t> offset,
                        std::vector<int64_t> shape) {
    return json{{"file", file},     {"dataset", dataset}, {"position", position},
                {"offset", offset}, {"shape", shape},     {"crc32c", "00000000"}};
  };
  const std::string sha(64, '0');
  return {{"format", "transmamba-checkpoint"},
          {"version", 1},
          {"step", 5},
          {"state", {{"lr", 0.5}}},
          {"files",
           {{{"name", "rank-00000.h5"}, {"bytes", 100}, {"sha256", sha}},
            {{"name", "rank-00001.h5"}, {"bytes", 80}, {"sha256", sha}}}},
          {"tensors",
           {{{"name", "a"},
             {"dtype", "float32"},
             {"shape", {4, 4}},
             {"slices",
              {slice(0, "/a/0,0", 0, {0, 0}, {2, 2}), slice(0, "/a/0,2", 16, {0, 2}, {2, 2}),
               slice(1, "/a/2,0", 0, {2, 0}, {2, 2}), slice(1, "/a/2,2", 16, {2, 2}, {2, 2})}}},
            {{"name", "b"}, {"dtype", "float64"}, {"shape", {6}}, {"slices", {slice(1, "/b", 32, {0}, {6})}}}}}};
}

TEST(Manifest, TheGoodOneIsRead) {
  const Manifest manifest = parse_manifest(sealed_json(good()));
  EXPECT_EQ(manifest.step, 5);
  EXPECT_EQ(manifest.files[1].bytes, 80);
  EXPECT_EQ(manifest.tensors[0].slices[3].offset, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(manifest_text(manifest), sealed_json(good()));
}

struct Edit {
  const char* what;
  std::function<void(json&)> apply;
  const char* message;
};

json& slice(json& m, size_t i) { return m["tensors"][0]["slices"][i]; }

const std::vector<Edit>& edits() {
  static const std::vector<Edit> list{
      {"format", [](json& m) { m["format"] = "zip"; }, "format"},
      {"no format", [](json& m) { m.erase("format"); }, "has no \"format\""},
      {"version text", [](json& m) { m["version"] = "1"; }, "version is not an integer"},
      {"no step", [](json& m) { m.erase("step"), m["steps"] = 5; }, "has no \"step\""},
      {"no state", [](json& m) { m.erase("state"), m["states"] = 5; }, "has no \"state\""},
      {"another member", [](json& m) { m["more"] = 1; }, "8 members"},
      {"step real", [](json& m) { m["step"] = 5.0; }, "step is not an integer"},
      {"step negative", [](json& m) { m["step"] = -5; }, "step is -5"},
      {"step huge", [](json& m) { m["step"] = UINT64_MAX; }, "too large"},
      {"step array", [](json& m) { m["step"] = {5}; }, "step is not an integer"},
      {"files object", [](json& m) { m["files"] = json::object(); }, "files is not an array"},
      {"file text", [](json& m) { m["files"][0] = "rank-00000.h5"; }, "files[0] is not an object"},
      {"name number", [](json& m) { m["files"][0]["name"] = 5; }, "files[0].name is not a string"},
      {"parent", [](json& m) { m["files"][0]["name"] = "../rank-00000.h5"; }, "file name is not allowed"},
      {"absolute", [](json& m) { m["files"][0]["name"] = "/etc/passwd.h5"; }, "file name is not allowed"},
      {"hidden", [](json& m) { m["files"][0]["name"] = ".h5"; }, "file name is not allowed"},
      {"another kind", [](json& m) { m["files"][0]["name"] = "manifest.json"; }, "file name is not allowed"},
      {"zero byte", [](json& m) { m["files"][0]["name"] = std::string("a\0.h5", 5); }, "file name is not allowed"},
      {"new line", [](json& m) { m["files"][0]["name"] = "a\n.h5"; }, "file name is not allowed"},
      {"long name", [](json& m) { m["files"][0]["name"] = std::string(100, 'a') + ".h5"; }, "file name is not allowed"},
      {"same file twice", [](json& m) { m["files"][1]["name"] = "rank-00000.h5"; }, "listed twice"},
      {"empty file", [](json& m) { m["files"][0]["bytes"] = 0; }, "cannot have 0 bytes"},
      {"negative file", [](json& m) { m["files"][0]["bytes"] = -100; }, "cannot have -100 bytes"},
      {"short hash", [](json& m) { m["files"][0]["sha256"] = "00"; }, "SHA-256 that is not 64"},
      {"capital hash", [](json& m) { m["files"][0]["sha256"] = std::string(64, 'A'); }, "SHA-256 that is not 64"},
      {"idle file", [](json& m) { m["files"].push_back(m["files"][0]), m["files"][2]["name"] = "x.h5"; },
       "contains no tensor"},
      {"tensors null", [](json& m) { m["tensors"] = nullptr; }, "tensors is not an array"},
      {"tensor number", [](json& m) { m["tensors"][1] = 7; }, "tensors[1] is not an object"},
      {"tensor without dtype", [](json& m) { m["tensors"][1].erase("dtype"); }, "tensors[1] has 3 members"},
      {"dtype", [](json& m) { m["tensors"][1]["dtype"] = "complex64"; }, "unknown element type"},
      {"wider dtype", [](json& m) { m["tensors"][0]["dtype"] = "float64"; }, "claim the same bytes"},
      {"same tensor twice", [](json& m) { m["tensors"][1]["name"] = "a"; }, "listed twice"},
      {"tensor below tensor", [](json& m) { m["tensors"][1]["name"] = "a/b"; }, "name of the directory"},
      {"empty tensor name", [](json& m) { m["tensors"][1]["name"] = ""; }, "empty name"},
      {"dots in name", [](json& m) { m["tensors"][1]["name"] = "x/../b"; }, "empty component"},
      {"slash at the end", [](json& m) { m["tensors"][1]["name"] = "b/"; }, "empty component"},
      {"control character", [](json& m) { m["tensors"][1]["name"] = "b\033[2J"; }, "not printable"},
      {"long tensor name", [](json& m) { m["tensors"][1]["name"] = std::string(1000, 'a'); }, "1000 characters"},
      {"no shape", [](json& m) { m["tensors"][1]["shape"] = json::array(); }, "0 numbers"},
      {"3-D",
       [](json& m) {
         m["tensors"][1]["shape"] = {6, 1, 1};
       },
       "3 numbers"},
      {"zero size", [](json& m) { m["tensors"][1]["shape"] = {0}; }, "not all positive"},
      {"negative size",
       [](json& m) {
         m["tensors"][0]["shape"] = {-4, -4};
       },
       "not all positive"},
      {"overflowing shape",
       [](json& m) {
         m["tensors"][0]["shape"] = {int64_t{1} << 40, int64_t{1} << 40};
       },
       "too large"},
      {"wrapping shape",
       [](json& m) {
         m["tensors"][0]["shape"] = {(int64_t{1} << 62) + 4, 4};
       },
       "too large"},
      {"huge shape",
       [](json& m) {
         m["tensors"][0]["shape"] = {4, int64_t{1} << 50};
       },
       "hole"},
      {"size text", [](json& m) { m["tensors"][1]["shape"] = {"6"}; }, "not an integer"},
      {"hole", [](json& m) { m["tensors"][0]["slices"].erase(2); }, "hole, 4 of 16"},
      {"no slices", [](json& m) { m["tensors"][0]["slices"] = json::array(); }, "hole, 16 of 16"},
      {"overlap",
       [](json& m) {
         slice(m, 1)["offset"] = {0, 1};
       },
       "overlap"},
      {"same slice twice",
       [](json& m) {
         slice(m, 1)["offset"] = {0, 0};
       },
       "overlap"},
      {"outside",
       [](json& m) {
         slice(m, 3)["offset"] = {2, 3};
       },
       "is outside the tensor"},
      {"negative offset",
       [](json& m) {
         slice(m, 0)["offset"] = {-2, 0};
       },
       "is outside the tensor"},
      {"wrapping offset",
       [](json& m) {
         slice(m, 3)["offset"] = {INT64_MAX, 2};
       },
       "is outside the tensor"},
      {"wrapping slice",
       [](json& m) {
         slice(m, 3)["shape"] = {INT64_MAX, 2};
       },
       "is outside the tensor"},
      {"empty slice",
       [](json& m) {
         slice(m, 3)["shape"] = {0, 2};
       },
       "is outside the tensor"},
      {"1-D slice", [](json& m) { slice(m, 3)["offset"] = {2}; }, "has another rank"},
      {"no such file", [](json& m) { slice(m, 3)["file"] = 2; }, "but there are 2 files"},
      {"negative file index", [](json& m) { slice(m, 3)["file"] = -1; }, "file is negative"},
      {"past the end", [](json& m) { slice(m, 3)["position"] = 70; }, "does not fit rank-00001.h5"},
      {"negative position", [](json& m) { slice(m, 3)["position"] = -1; }, "does not fit"},
      {"wrapping position", [](json& m) { slice(m, 3)["position"] = INT64_MAX - 3; }, "does not fit"},
      {"shared bytes", [](json& m) { slice(m, 3)["position"] = 8; }, "claim the same bytes"},
      {"same dataset twice", [](json& m) { slice(m, 3)["dataset"] = "/a/2,0"; }, "listed twice for one file"},
      {"relative dataset", [](json& m) { slice(m, 3)["dataset"] = "a"; }, "is not an absolute path"},
      {"dataset with dots", [](json& m) { slice(m, 3)["dataset"] = "/a/../b"; }, "empty component"},
      {"short checksum", [](json& m) { slice(m, 3)["crc32c"] = "0"; }, "8 hexadecimal digits"},
      {"checksum number", [](json& m) { slice(m, 3)["crc32c"] = 0; }, "not a string"},
      {"slice array",
       [](json& m) {
         slice(m, 3) = json::array({1, 2});
       },
       "slices[3] is not an object"},
      {"array", [](json& m) { m = json::array({1}); }, ""},
  };
  return list;
}

TEST(Manifest, EveryBadEditIsRefusedAndNamed) {
  for (const Edit& edit : edits()) {
    json body = good();
    edit.apply(body);
    const std::string problem = thrown([&] { parse_manifest(body.is_object() ? sealed_json(body) : body.dump()); });
    EXPECT_THAT(problem, HasSubstr(edit.message)) << edit.what;
    EXPECT_FALSE(problem.empty()) << edit.what;
  }
}

TEST(Manifest, AnotherVersionIsTheUsersBusiness) {
  json body = good();
  body["version"] = 2;
  EXPECT_THAT(thrown<UserError>([&] { parse_manifest(sealed_json(body)); }), HasSubstr("format version 2"));
}

TEST(Manifest, TextsThatAreNoJsonAreRefused) {
  const std::string deep = "{\"state\": " + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_THAT(thrown([&] { parse_manifest(sealed(deep)); }), HasSubstr("nested deeper"));
  EXPECT_THAT(thrown([&] { parse_manifest(sealed("{\"a\": 1, }")); }), HasSubstr("not valid JSON"));
  EXPECT_THAT(thrown([&] { parse_manifest(sealed("{\"a\": \"\xff\"}")); }), HasSubstr("not valid JSON"));
  EXPECT_THAT(thrown([&] { parse_manifest(sealed("{\"step\": 1e999}")); }), HasSubstr("not valid JSON"));
  EXPECT_THAT(thrown([&] { parse_manifest(""); }), HasSubstr("truncated"));
  EXPECT_THAT(thrown([&] { parse_manifest(std::string(500, 'x')); }), HasSubstr("does not end with its SHA-256"));
  EXPECT_THAT(thrown([&] { parse_manifest(good().dump(1)); }), HasSubstr("does not end with its SHA-256"));
}

TEST(Manifest, EveryFlippedBitAndTruncationIsFound) {
  const std::string text = sealed_json(good());
  for (size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = text;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      ASSERT_NE(thrown([&] { parse_manifest(bad); }), "") << "bit " << bit << " of byte " << i;
    }
    ASSERT_NE(thrown([&] { parse_manifest(text.substr(0, i)); }), "") << i << " bytes";
  }
  EXPECT_NE(thrown([&] { parse_manifest(text + " "); }), "");
}

TEST(Manifest, RandomDamageUnderAGoodSealNeverCrashes) {
  constexpr uint64_t kSeed = 11;
  std::mt19937_64 random(kSeed);
  const std::string text = good().dump(1);
  const std::string_view tokens[] = {"-1",
                                     "0",
                                     "9223372036854775807",
                                     "18446744073709551615",
                                     "1e308",
                                     "null",
                                     "[]",
                                     "{}",
                                     "\"\"",
                                     "true",
                                     "[1,2,3]",
                                     "4",
                                     "\"a\"",
                                     "\"/b\""};
  int accepted = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::string bad = text;
    for (uint64_t edits_left = 1 + random() % 3; edits_left > 0; --edits_left) {
      const size_t at = random() % bad.size();
      switch (random() % 3) {
        case 0:
          bad[at] = static_cast<char>(32 + random() % 95);
          break;
        case 1:
          bad.erase(at, 1 + random() % 8);
          break;
        default: {  // another value in the place of a number
          const size_t digit = bad.find_first_of("0123456789", at);
          if (digit == std::string::npos) break;
          const size_t end = bad.find_first_not_of("0123456789", digit);
          bad.replace(digit, end - digit, tokens[random() % std::size(tokens)]);
        }
      }
    }
    if (bad.rfind('}') == std::string::npos) continue;
    try {
      check_manifest(parse_manifest(sealed(bad)));
      ++accepted;  // a change of the state, a checksum or a name may well be proper
    } catch (const Error&) {
    }
  }
  EXPECT_LT(accepted, 10000) << "seed " << kSeed;
}

// The rule on covers against counting every element.
TEST(Manifest, CoversAreCheckedAsByCounting) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    std::mt19937_64 random(seed);
    ManifestTensor tensor{
        "x", DType::u8, {1 + static_cast<int64_t>(random() % 6), 1 + static_cast<int64_t>(random() % 6)}, {}};
    if (random() % 4 == 0) tensor.shape.pop_back();
    for (const Part& part : cut(tensor.shape, 1 + static_cast<int>(random() % 8), random)) {
      StoredSlice slice;
      slice.offset = part.offset, slice.shape = part.size;
      tensor.slices.push_back(slice);
    }
    std::shuffle(tensor.slices.begin(), tensor.slices.end(), random);
    if (random() % 2 == 0) {  // damage it: shift, grow, shrink, repeat or lose a slice
      StoredSlice& slice = tensor.slices[random() % tensor.slices.size()];
      const size_t dim = random() % tensor.shape.size();
      const int64_t change = random() % 2 == 0 ? 1 : -1;
      switch (random() % 4) {
        case 0:
          slice.offset[dim] += change;
          break;
        case 1:
          slice.shape[dim] += change;
          break;
        case 2:
          tensor.slices.push_back(StoredSlice(slice));
          break;
        default:
          tensor.slices.erase(tensor.slices.begin());
      }
    }
    std::map<std::pair<int64_t, int64_t>, int> count;
    bool inside = true;
    int64_t elements = 1;
    for (int64_t size : tensor.shape) elements *= size;
    for (const StoredSlice& slice : tensor.slices) {
      const bool flat = tensor.shape.size() == 1;
      for (size_t i = 0; i < tensor.shape.size(); ++i) {
        inside = inside && slice.offset[i] >= 0 && slice.shape[i] >= 1 &&
                 slice.offset[i] + slice.shape[i] <= tensor.shape[i];
      }
      for (int64_t i = 0; i < slice.shape[0]; ++i) {
        for (int64_t j = 0; j < (flat ? 1 : slice.shape[1]); ++j) {
          ++count[{slice.offset[0] + i, flat ? 0 : slice.offset[1] + j}];
        }
      }
    }
    bool once = static_cast<int64_t>(count.size()) == elements;
    for (const auto& [place, times] : count) once = once && times == 1;
    EXPECT_EQ(thrown([&] { check_cover(tensor); }).empty(), inside && once) << "seed " << seed;
  }
}

TEST(Manifest, AMillionSlicesAreCheckedInSeconds) {
  ManifestTensor tensor{"x", DType::f32, {1000, 1000}, {}};
  for (int64_t i = 0; i < 1000; ++i) {
    for (int64_t j = 0; j < 1000; ++j) {
      StoredSlice slice;
      slice.offset = {i, j}, slice.shape = {1, 1};
      tensor.slices.push_back(std::move(slice));
    }
  }
  EXPECT_NO_THROW(check_cover(tensor));
  tensor.slices[777777].offset = {0, 0};
  EXPECT_THAT(thrown([&] { check_cover(tensor); }), HasSubstr("overlap"));
}

}  // namespace
}  // namespace tmamba
