#include "data/tokens/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "data/tokens/permutation.h"
#include "data/tokens/tokenizer.h"
#include "tests/data/temp_folder.h"

namespace tmamba {
namespace {
using testing_files::TempFolder;

// A file whose token i is i; the last is the document's end.
class LoaderTest : public ::testing::Test {
 protected:
  static constexpr int32_t kTokens = 1000;
  LoaderTest() {
    TokenFileInfo info;
    info.vocab_size = kTokens;
    info.document_end = kTokens - 1;
    info.tokenizer_kind = "test";
    info.split = "train";
    TokenFileWriter writer(folder_ / "t.h5", info, std::vector<uint16_t>(kTokens, 1));
    std::vector<int32_t> tokens(kTokens - 1);
    std::iota(tokens.begin(), tokens.end(), 0);
    writer.append(tokens);
    writer.close(kTokens, "");
    file_ = std::make_unique<TokenFile>(folder_ / "t.h5");
  }

  static std::vector<int32_t> values(const Tensor& x) {
    const int32_t* data = x.data<int32_t>();
    return {data, data + x.numel()};
  }

  TempFolder folder_;
  std::unique_ptr<TokenFile> file_;
};

TEST_F(LoaderTest, WindowsOverlapByOne) {
  EXPECT_EQ(Loader(*file_, 37, 0).windows(), 27);  // 27 * 37 = 999
  EXPECT_EQ(Loader(*file_, 999, 0).windows(), 1);
  EXPECT_EQ(Loader(*file_, 500, 0).windows(), 1);
  EXPECT_EQ(Loader(*file_, 333, 0).windows(), 3);
}

TEST_F(LoaderTest, TargetsAreTokensShiftedByOne) {
  Loader loader(*file_, 37, 5);
  const Batch batch = loader.load(3, 20);
  EXPECT_EQ(batch.tokens_BT.shape(), "[20, 37]");
  EXPECT_EQ(batch.targets_BT.shape(), "[20, 37]");
  const auto tokens = values(batch.tokens_BT), targets = values(batch.targets_BT);
  for (size_t i = 0; i < tokens.size(); ++i) {
    ASSERT_EQ(targets[i], tokens[i] + 1);
    ASSERT_EQ(tokens[i], loader.window_of(3 + static_cast<int64_t>(i) / 37) * 37 + static_cast<int64_t>(i) % 37);
  }
}

TEST_F(LoaderTest, EveryWindowOnceAnEpoch) {
  const Loader loader(*file_, 37, 5);
  std::set<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < loader.windows(); ++i) order.push_back(loader.window_of(epoch * loader.windows() + i));
    orders.insert(order);
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < loader.windows(); ++i) ASSERT_EQ(order[static_cast<size_t>(i)], i) << "epoch " << epoch;
  }
  EXPECT_EQ(orders.size(), 20u);  // no two epochs alike
}

TEST_F(LoaderTest, SeedsDiffer) {
  const Loader a(*file_, 37, 5), b(*file_, 37, 6), c(*file_, 37, 5);
  int same = 0;
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(a.window_of(i), c.window_of(i));
    same += a.window_of(i) == b.window_of(i) ? 1 : 0;
  }
  EXPECT_LT(same, 30);
}

TEST_F(LoaderTest, BatchSizeAndRanksDoNotMatter) {
  Loader loader(*file_, 10, 7);
  const auto all = values(loader.load(90, 24).tokens_BT);
  for (int64_t each : {1, 2, 3, 8, 12}) {
    std::vector<int32_t> pieces;
    Loader other(*file_, 10, 7);
    for (int64_t at = 0; at < 24; at += each) {
      const auto piece = values(other.load(90 + at, each).tokens_BT);
      pieces.insert(pieces.end(), piece.begin(), piece.end());
    }
    EXPECT_EQ(pieces, all) << each;
  }
}

TEST_F(LoaderTest, SequentialOrder) {
  Loader loader(*file_, 10, 7, Order::sequential);
  for (int64_t i = 0; i < 250; ++i) EXPECT_EQ(loader.window_of(i), i % 99);
  EXPECT_EQ(values(loader.load(98, 2).tokens_BT)[10], 0);  // the next epoch begins
}

// Reads 4 x 37, 7 x 20, 3 x 50 tokens, then whole epochs of 50: until the epoch in which the length changed ends, every
// token is read once, with the token after it as its target; the tokens left out are those counted.
TEST_F(LoaderTest, AnotherSequenceLengthContinuesTheEpoch) {
  std::vector<Stretch> list;
  std::multiset<int32_t> seen;
  int64_t left_out = 0;
  const auto read = [&](int64_t seq_len, int64_t count) {
    list.push_back({.first_token = 0, .seq_len = seq_len, .sources = {{.name = "train", .identity = "file"}}});
    Loader loader(*file_, seq_len, 5);
    const SourcePlace start = start_of_last(list, kTokens);
    left_out = left_out_tokens(start, kTokens, seq_len);
    loader.begin_at(start);
    const auto tokens = values(loader.load(0, count).tokens_BT), targets = values(loader.load(0, count).targets_BT);
    seen.insert(tokens.begin(), tokens.end());
    for (size_t i = 0; i < tokens.size(); ++i) ASSERT_EQ(targets[i], tokens[i] + 1);
    list.back().sources.front().drawn = count * seq_len;
  };
  read(37, 4);
  read(20, 7);
  read(50, 3);
  const int64_t rest = 27 * 37 - (4 * 37 + 7 * 20 + 3 * 50);
  EXPECT_EQ(left_out, (rest + 3 * 50) % 50);
  read(50, rest / 50);
  EXPECT_EQ(std::ssize(seen), 27 * 37 - left_out);
  EXPECT_EQ(std::set<int32_t>(seen.begin(), seen.end()).size(), seen.size());
  // The next epoch has blocks of 50, as if it had never had others.
  EXPECT_EQ(place_after(list, "file", kTokens).epoch, 1);
  Loader fresh(*file_, 50, 5), later(*file_, 50, 5);
  later.begin_at(place_after(list, "file", kTokens));
  for (int64_t i = 0; i < 40; ++i) EXPECT_EQ(later.window_of(i), fresh.window_of(fresh.windows() + i));
}

// Stretches of one length, and the place in them, do not depend on how they are cut; other files count for themselves.
TEST_F(LoaderTest, AStretchContinuesWhereTheFileWasLeft) {
  const auto stretch = [](const char* identity, int64_t drawn) {
    return Stretch{.seq_len = 37, .sources = {{.name = "train", .identity = identity, .drawn = drawn * 37}}};
  };
  const SourcePlace whole = place_after({stretch("a", 61)}, "a", kTokens);
  const SourcePlace parts = place_after({stretch("a", 20), stretch("b", 7), stretch("a", 41)}, "a", kTokens);
  EXPECT_EQ(whole.epoch, 2);
  EXPECT_EQ(whole.offset, 7 * 37);
  EXPECT_EQ(parts.epoch, whole.epoch);
  EXPECT_EQ(parts.offset, whole.offset);
  EXPECT_EQ(place_after({stretch("a", 20)}, "b", kTokens).offset, 0);
}

TEST_F(LoaderTest, TooShortAFileIsRefused) {
  EXPECT_MESSAGE(UserError, "has 1000 tokens, too few for one sequence of 1000 + 1", Loader(*file_, 1000, 0));
  EXPECT_MESSAGE(UserError, "seq_len must be at least 1", Loader(*file_, 0, 0));
  EXPECT_NO_THROW(Loader(*file_, 999, 0).load(0, 3));
}

TEST(Permutation, IsOneForEverySize) {
  for (int64_t size = 1; size <= 300; ++size) {
    const Philox random(11, static_cast<uint64_t>(size));
    std::vector<bool> seen(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      const int64_t place = permute(i, size, random);
      ASSERT_TRUE(place >= 0 && place < size && !seen[static_cast<size_t>(place)]) << "size " << size;
      seen[static_cast<size_t>(place)] = true;
    }
  }
}

TEST(Permutation, LargeSizes) {
  for (int64_t size : {int64_t{1} << 20, (int64_t{1} << 40) + 1, (int64_t{1} << 62) - 5}) {
    const Philox random(1, 2);
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 1000; ++i) {
      const int64_t place = permute(i, size, random);
      EXPECT_TRUE(place >= 0 && place < size);
      EXPECT_TRUE(seen.insert(place).second);
    }
  }
  EXPECT_THROW(permute(5, 5, Philox(0, 0)), Error);
}

// Every index must be as likely to land anywhere: chi-squared over many keys.
TEST(Permutation, IsUniform) {
  for (int64_t size : {2, 3, 5, 12, 40, 70}) {
    constexpr int kKeys = 20'000;
    std::vector<double> counts(static_cast<size_t>(size * size));
    for (int key = 0; key < kKeys; ++key) {
      const Philox random(static_cast<uint64_t>(key), 99);
      for (int64_t i = 0; i < size; ++i) ++counts[static_cast<size_t>(i * size + permute(i, size, random))];
    }
    const double expected = static_cast<double>(kKeys) / static_cast<double>(size);
    for (int64_t i = 0; i < size; ++i) {
      double chi = 0;
      for (int64_t j = 0; j < size; ++j) {
        const double d = counts[static_cast<size_t>(i * size + j)] - expected;
        chi += d * d / expected;
      }
      // Mean size - 1, variance 2 (size - 1): six standard deviations.
      EXPECT_LT(chi, static_cast<double>(size - 1) + 6 * std::sqrt(2.0 * static_cast<double>(size)))
          << "size " << size << " index " << i;
    }
  }
}

}  // namespace
}  // namespace tmamba
