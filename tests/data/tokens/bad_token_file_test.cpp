// Token files that are damaged, or none at all, are refused.
#include "tests/data/tokens/token_file_tools.h"

namespace tmamba {
namespace {
using testing_files::read_file;
using testing_files::TempFolder;
using testing_files::write_file;

class BadTokenFile : public ::testing::Test {
 protected:
  // A whole file, changed by `change` through the C library.
  template <class F>
  std::filesystem::path changed(F&& change) {
    auto path = folder_ / "bad.h5";
    write_tokens(path, random_tokens(5000, 300, 1), 300);
    const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    EXPECT_GE(file, 0);
    change(file);
    EXPECT_GE(H5Fclose(file), 0);
    return path;
  }

  static void set_integer(hid_t file, const char* name, int64_t value) {
    const hid_t attribute = H5Aopen(file, name, H5P_DEFAULT);
    EXPECT_GE(H5Awrite(attribute, H5T_NATIVE_INT64, &value), 0);
    H5Aclose(attribute);
  }

  static void replace(hid_t file, const char* name, hid_t type, std::vector<hsize_t> shape) {
    H5Ldelete(file, name, H5P_DEFAULT);
    const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const hid_t dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    EXPECT_GE(dataset, 0);
    const std::vector<uint64_t> zeros(100'000);
    if (H5Tget_class(type) == H5T_INTEGER) {
      EXPECT_GE(H5Dwrite(dataset, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros.data()), 0);
    }
    H5Dclose(dataset);
    H5Sclose(space);
  }

  static void write_first(hid_t file, const char* name, int64_t value) {
    const hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT), space = H5Dget_space(dataset), one = H5Screate(H5S_SCALAR);
    const hsize_t place = 3;
    H5Sselect_elements(space, H5S_SELECT_SET, 1, &place);
    EXPECT_GE(H5Dwrite(dataset, H5T_NATIVE_INT64, one, space, H5P_DEFAULT, &value), 0);
    H5Sclose(space);
    H5Sclose(one);
    H5Dclose(dataset);
  }

  TempFolder folder_;
};

TEST_F(BadTokenFile, MissingEmptyOrForeign) {
  EXPECT_MESSAGE(UserError, "no such file; create it with `transmamba prepare`", TokenFile(folder_ / "missing.h5"));
  EXPECT_MESSAGE(UserError, "is a directory", TokenFile(folder_.path()));
  EXPECT_MESSAGE(UserError, "is empty", TokenFile(write_file(folder_ / "empty.h5", "")));
  EXPECT_MESSAGE(UserError, "not an HDF5 file", TokenFile(write_file(folder_ / "text.h5", testing_files::licence())));
  H5File::create(folder_ / "other.h5").close();
  EXPECT_MESSAGE(UserError, "but not a token file", TokenFile(folder_ / "other.h5"));
}

TEST_F(BadTokenFile, TruncatedAnywhere) {
  const auto path = changed([](hid_t) {});
  const std::string bytes = read_file(path);
  for (size_t keep = 0; keep < bytes.size(); keep += bytes.size() / 60) {
    write_file(folder_ / "cut.h5", bytes.substr(0, keep));
    const auto message = testing_files::message_of<UserError>([&] { TokenFile(folder_ / "cut.h5"); });
    EXPECT_NE(message.find("cut.h5"), std::string::npos) << message;
  }
  EXPECT_MESSAGE(UserError, "truncated", {
    write_file(folder_ / "cut.h5", bytes.substr(0, bytes.size() - 1));
    TokenFile(folder_ / "cut.h5");
  });
}

TEST_F(BadTokenFile, AnotherVersion) {
  const auto path = changed([](hid_t file) { set_integer(file, "version", 2); });
  EXPECT_MESSAGE(UserError, "is a token file of version 2, this program reads version 1", TokenFile{path});
}

TEST_F(BadTokenFile, ImpossibleAttributes) {
  EXPECT_MESSAGE(UserError, "vocab_size is 0", TokenFile(changed([](hid_t f) { set_integer(f, "vocab_size", 0); })));
  EXPECT_MESSAGE(UserError, "vocab_size is",
                 TokenFile(changed([](hid_t f) { set_integer(f, "vocab_size", int64_t{1} << 40); })));
  EXPECT_MESSAGE(UserError, "token_bytes has 300 entries for a vocabulary of 299", TokenFile(changed([](hid_t f) {
                   set_integer(f, "document_end", 0);
                   set_integer(f, "vocab_size", 299);
                 })));
  EXPECT_MESSAGE(UserError, "document_end is 300",
                 TokenFile(changed([](hid_t f) { set_integer(f, "document_end", 300); })));
  EXPECT_MESSAGE(UserError, "source_bytes is -1",
                 TokenFile(changed([](hid_t f) { set_integer(f, "source_bytes", -1); })));
  EXPECT_MESSAGE(UserError, "has no attribute split", TokenFile(changed([](hid_t f) { H5Adelete(f, "split"); })));
  EXPECT_MESSAGE(UserError, "is not the name of a file beside it", {
    TokenFileInfo info = info_with(300);
    info.tokenizer_file = "../../etc/passwd";
    TokenFileWriter writer(folder_ / "path.h5", info, std::vector<uint16_t>(300));
    writer.close(0, "");
    TokenFile(folder_ / "path.h5");
  });
}

TEST_F(BadTokenFile, LinksAndForeignStorage) {
  EXPECT_MESSAGE(UserError, "soft link", TokenFile(changed([](hid_t f) {
                   H5Lmove(f, "tokens", f, "real", H5P_DEFAULT, H5P_DEFAULT);
                   H5Lcreate_soft("/real", f, "tokens", H5P_DEFAULT, H5P_DEFAULT);
                 })));
  EXPECT_MESSAGE(UserError, "external link", TokenFile(changed([](hid_t f) {
                   H5Ldelete(f, "documents", H5P_DEFAULT);
                   H5Lcreate_external("other.h5", "/documents", f, "documents", H5P_DEFAULT, H5P_DEFAULT);
                 })));
  const hsize_t size = 5000;
  EXPECT_MESSAGE(UserError, "is virtual", TokenFile(changed([&](hid_t f) {
                   const hid_t space = H5Screate_simple(1, &size, nullptr), list = H5Pcreate(H5P_DATASET_CREATE);
                   H5Pset_virtual(list, space, "other.h5", "tokens", space);
                   H5Ldelete(f, "tokens", H5P_DEFAULT);
                   H5Dclose(H5Dcreate2(f, "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, list, H5P_DEFAULT));
                   H5Pclose(list);
                   H5Sclose(space);
                 })));
  EXPECT_MESSAGE(UserError, "external file", TokenFile(changed([&](hid_t f) {
                   const hid_t space = H5Screate_simple(1, &size, nullptr), list = H5Pcreate(H5P_DATASET_CREATE);
                   H5Pset_external(list, "/etc/passwd", 0, 2 * size);
                   H5Ldelete(f, "tokens", H5P_DEFAULT);
                   H5Dclose(H5Dcreate2(f, "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, list, H5P_DEFAULT));
                   H5Pclose(list);
                   H5Sclose(space);
                 })));
}

TEST_F(BadTokenFile, WrongShapesAndTypes) {
  EXPECT_MESSAGE(UserError, "dataset tokens holds int64, expected uint16 or uint32",
                 TokenFile(changed([](hid_t f) { replace(f, "tokens", H5T_STD_I64LE, {5000}); })));
  EXPECT_MESSAGE(UserError, "tokens has an element type that is not allowed",
                 TokenFile(changed([](hid_t f) { replace(f, "tokens", H5T_C_S1, {5000}); })));
  EXPECT_MESSAGE(UserError, "tokens has 2 dimensions, expected 1", TokenFile(changed([](hid_t f) {
                   replace(f, "tokens", H5T_STD_U16LE, {50, 100});
                 })));
  EXPECT_MESSAGE(UserError, "documents holds uint16, expected int64",
                 TokenFile(changed([](hid_t f) { replace(f, "documents", H5T_STD_U16LE, {5}); })));
  EXPECT_MESSAGE(UserError, "has no dataset tokens",
                 TokenFile(changed([](hid_t f) { H5Ldelete(f, "tokens", H5P_DEFAULT); })));
  EXPECT_MESSAGE(UserError, "6000 documents, but only 5005 tokens",
                 TokenFile(changed([](hid_t f) { replace(f, "documents", H5T_STD_I64LE, {6000}); })));
}

TEST_F(BadTokenFile, DeclaredSizeBomb) {
  EXPECT_MESSAGE(UserError, "does not hold", TokenFile(changed([](hid_t f) {
                   const hid_t dataset = H5Dopen2(f, "tokens", H5P_DEFAULT);
                   const hsize_t size = hsize_t{1} << 42;
                   EXPECT_GE(H5Dset_extent(dataset, &size), 0);
                   H5Dclose(dataset);
                 })));
  EXPECT_MESSAGE(UserError, "does not hold", TokenFile(changed([](hid_t f) {
                   H5Ldelete(f, "token_bytes", H5P_DEFAULT);
                   const hsize_t size = hsize_t{1} << 40;
                   const hid_t space = H5Screate_simple(1, &size, nullptr);
                   H5Dclose(H5Dcreate2(f, "token_bytes", H5T_STD_U16LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
                   H5Sclose(space);
                 })));
}

TEST_F(BadTokenFile, TokenOutOfTheVocabulary) {
  const auto path = changed([](hid_t f) { write_first(f, "tokens", 300); });
  for (int64_t memory : {int64_t{0}, int64_t{1} << 20}) {
    const TokenFile file(path, memory);
    std::vector<int32_t> out(3);
    file.read(0, out);  // before the bad one
    EXPECT_MESSAGE(UserError, "token 300 at position 3 is out of the vocabulary of 300", file.read(1, out));
  }
}

TEST_F(BadTokenFile, DocumentsOutOfOrder) {
  for (int64_t start : {1, 99'999, -5}) {
    const TokenFile file(changed([&](hid_t f) { write_first(f, "documents", start); }));
    EXPECT_MESSAGE(UserError, str("document 3 begins at token ", start), file.documents());
  }
}

TEST_F(BadTokenFile, FlippedBytesInTheTokensAreFound) {
  const auto path = changed([](hid_t) {});
  const auto file = H5File::open_read(path);
  std::vector<uint16_t> tokens(static_cast<size_t>(file.dataset("tokens").info().shape[0]));
  file.dataset("tokens").read(std::array<int64_t, 1>{0}, std::array{static_cast<int64_t>(tokens.size())}, H5Type::u16,
                              tokens.data());
  std::string bytes = read_file(path);
  const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(tokens.data()), 100));
  ASSERT_NE(at, std::string::npos);
  bytes[at + 500] = static_cast<char>(bytes[at + 500] ^ 1);
  write_file(folder_ / "flipped.h5", bytes);
  const TokenFile flipped(folder_ / "flipped.h5");
  std::vector<int32_t> out(10);
  EXPECT_MESSAGE(UserError, "Fletcher32", flipped.read(0, out));
}

// All that a token file says.
struct Content {
  std::vector<int64_t> numbers;
  std::vector<std::string> names;
  std::vector<int32_t> tokens;
  std::vector<int64_t> documents;
  std::vector<uint16_t> token_bytes;
  bool operator==(const Content&) const = default;
};

Content content_of(const std::filesystem::path& path) {
  const TokenFile file(path);
  const TokenFileInfo& info = file.info();
  Content out;
  out.numbers = {info.tokens, info.documents, info.vocab_size, info.source_bytes, info.document_end, info.version};
  out.names = {info.tokenizer_kind, info.tokenizer_hash, info.tokenizer_file, info.source_hash, info.split};
  out.tokens.resize(static_cast<size_t>(info.tokens));
  file.read(0, out.tokens);
  out.documents = file.documents();
  out.token_bytes = file.token_bytes();
  return out;
}

// A flipped bit is found, or it lies where nothing is; never is anything else read than what was written.
TEST_F(BadTokenFile, EveryFlippedBitIsFoundOrHarmless) {
  const auto path = folder_ / "whole.h5", damaged = folder_ / "damaged.h5";
  write_tokens(path, random_tokens(5000, 300, 1), 300);
  const Content wanted = content_of(path);
  const std::string whole = read_file(path);
  std::mt19937_64 random(17);
  int found = 0;
  constexpr int kFlips = 1200;
  for (int i = 0; i < kFlips; ++i) {
    std::string bytes = whole;
    const size_t at = i % 2 == 0 ? random() % bytes.size() : random() % 4096;  // the metadata comes first
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
    write_file(damaged, bytes);
    try {
      ASSERT_TRUE(content_of(damaged) == wanted) << "byte " << at << " was " << static_cast<int>(whole[at]);
    } catch (const UserError&) {
      ++found;
    }
  }
  EXPECT_GT(found, kFlips / 2);
}

TEST_F(BadTokenFile, LargerDamageIsSurvived) {
  const auto path = folder_ / "whole.h5", damaged = folder_ / "damaged.h5";
  write_tokens(path, random_tokens(5000, 300, 1), 300);
  const Content wanted = content_of(path);
  const std::string whole = read_file(path);
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 random(seed);
    std::string bytes = whole;
    const size_t at = random() % 6000, count = 1 + random() % 64;
    for (size_t i = at; i < at + count; ++i) bytes[i] = static_cast<char>(random());
    write_file(damaged, bytes);
    try {
      ASSERT_TRUE(content_of(damaged) == wanted) << "seed " << seed;
    } catch (const UserError&) {
      // Found.
    }
  }
}

}  // namespace
}  // namespace tmamba
