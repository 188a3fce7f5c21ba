// Token files: what is written is read.
#include "tests/data/tokens/token_file_tools.h"

// HDF5 leaks when it meets a damaged file, and when one that cannot be written is given up.
// NOLINTNEXTLINE(bugprone-reserved-identifier): the sanitizer's name
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

namespace tmamba {
namespace {
using testing_files::message_of;
using testing_files::TempFolder;

H5Type stored_type(const std::filesystem::path& path) { return H5File::open_read(path).dataset("tokens").info().type; }

TEST(TokenFile, WhatWasWrittenIsRead) {
  const TempFolder folder;
  const auto expected = write_tokens(folder / "t.h5", random_tokens(1'500'000, 300, 1), 300);
  const TokenFile file(folder / "t.h5");
  EXPECT_EQ(file.info().tokens, static_cast<int64_t>(expected.size()));
  EXPECT_EQ(file.info().documents, 1500);
  EXPECT_EQ(file.info().vocab_size, 300);
  EXPECT_EQ(file.info().document_end, 299);
  EXPECT_EQ(file.info().source_bytes, 12345);
  EXPECT_EQ(file.info().source_hash, "feed");
  EXPECT_EQ(file.info().tokenizer_kind, "test");
  EXPECT_EQ(file.info().tokenizer_hash, "abc");
  EXPECT_EQ(file.info().tokenizer_file, "tokenizer.model");
  EXPECT_EQ(file.info().split, "train");
  EXPECT_EQ(file.token_bytes(), std::vector<uint16_t>(300, 3));
  std::vector<int32_t> all(expected.size());
  file.read(0, all);
  EXPECT_EQ(all, expected);
  const auto documents = file.documents();
  ASSERT_EQ(documents.size(), 1500u);
  for (size_t i = 0; i < documents.size(); ++i) ASSERT_EQ(documents[i], static_cast<int64_t>(i) * 1001);
}

TEST(TokenFile, BlocksFromMemoryAndFromTheFileAreTheSame) {
  const TempFolder folder;
  const auto expected = write_tokens(folder / "t.h5", random_tokens(300'000, 70'000, 2), 70'000);
  const TokenFile whole(folder / "t.h5"), pieces(folder / "t.h5", 0);
  std::mt19937_64 random(3);
  for (int i = 0; i < 200; ++i) {
    const size_t begin = random() % expected.size(),
                 count = random() % std::min<size_t>(2000, expected.size() - begin + 1);
    std::vector<int32_t> a(count), b(count);
    whole.read(static_cast<int64_t>(begin), a);
    pieces.read(static_cast<int64_t>(begin), b);
    const std::vector<int32_t> wanted(expected.begin() + static_cast<int64_t>(begin),
                                      expected.begin() + static_cast<int64_t>(begin + count));
    ASSERT_EQ(a, wanted) << begin << " " << count;
    ASSERT_EQ(b, wanted) << begin << " " << count;
  }
  std::vector<int32_t> out(10);
  EXPECT_THROW(whole.read(whole.info().tokens - 9, out), Error);
  EXPECT_THROW(whole.read(-1, out), Error);
}

TEST(TokenFile, TakesTheSmallestTypeThatFits) {
  const TempFolder folder;
  for (int64_t vocab : {257, 65535, 65536}) {
    write_tokens(folder / "t.h5", random_tokens(100, vocab, 1), vocab);
    EXPECT_EQ(stored_type(folder / "t.h5"), H5Type::u16) << vocab;
  }
  const auto expected = write_tokens(folder / "t.h5", random_tokens(100, 65537, 1), 65537);
  EXPECT_EQ(stored_type(folder / "t.h5"), H5Type::u32);
  std::vector<int32_t> all(expected.size());
  TokenFile(folder / "t.h5").read(0, all);
  EXPECT_EQ(all, expected);  // the last is 65536, which no uint16 holds
}

TEST(TokenFile, AnUnfinishedDocumentIsEnded) {
  const TempFolder folder;
  TokenFileWriter writer(folder / "t.h5", *load_tokenizer("bytes"), "bytes", "valid");
  writer.append(std::array<int32_t, 2>{65, 66});
  writer.end_document();
  writer.end_document();  // an empty document
  writer.append(std::array<int32_t, 1>{67});
  EXPECT_THROW(writer.append(std::array<int32_t, 1>{257}), Error);
  EXPECT_THROW(writer.append(std::array<int32_t, 1>{-1}), Error);
  writer.close(3, "h");
  const TokenFile file(folder / "t.h5");
  std::vector<int32_t> all(static_cast<size_t>(file.info().tokens));
  file.read(0, all);
  EXPECT_EQ(all, (std::vector<int32_t>{65, 66, 256, 256, 67, 256}));
  EXPECT_EQ(file.documents(), (std::vector<int64_t>{0, 3, 4}));
  EXPECT_EQ(file.token_bytes()[0], 1);
  EXPECT_EQ(file.token_bytes()[256], 0);
}

TEST(TokenFileWriterErrors, FolderMissing) {
  const TempFolder folder;
  EXPECT_MESSAGE(Error, "cannot create the file",
                 TokenFileWriter(folder / "no/such/folder.h5", info_with(300), std::vector<uint16_t>(300)));
}

TEST(TokenFileWriterErrors, NoSpaceLeft) {
  const TempFolder folder;
  const auto tokens = random_tokens(3'000'000, 300, 1);
  for (rlim_t bytes : {rlim_t{0}, rlim_t{100}, rlim_t{5'000}, rlim_t{100'000}, rlim_t{3'000'000}}) {
    const testing_files::FileSizeLimit limit(bytes);
    const auto message = message_of<Error>([&] {
      TokenFileWriter writer(folder / "t.h5", info_with(300), std::vector<uint16_t>(300));
      writer.append(tokens);
      writer.close(0, "");
    });
    EXPECT_NE(message.find("t.h5: cannot"), std::string::npos) << message;
    EXPECT_NE(message.find("File too large"), std::string::npos) << message;
    std::filesystem::remove(folder / "t.h5");
  }
  {  // Given up by an exception before close(), with data still to be written.
    const testing_files::FileSizeLimit limit(100'000);
    TokenFileWriter writer(folder / "v.h5", info_with(300), std::vector<uint16_t>(300));
    writer.append(std::span(tokens).first(100'000));
  }
  // The library still works afterwards.
  write_tokens(folder / "u.h5", random_tokens(1000, 300, 1), 300);
  EXPECT_EQ(TokenFile(folder / "u.h5").info().documents, 1);
}

}  // namespace
}  // namespace tmamba
