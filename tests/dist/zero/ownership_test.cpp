#include "dist/zero/ownership.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/base/rng.h"

namespace tmamba {
namespace {

Bucket random_bucket(const Philox& random, uint64_t stream) {
  auto draw = [&, counter = stream * 1000](int64_t limit) mutable {
    return static_cast<int64_t>(random.uniform(counter++) * static_cast<double>(limit));
  };
  Bucket bucket;
  int64_t begin = draw(100);
  for (int64_t blocks = 1 + draw(6); blocks > 0; --blocks) {
    bucket.push_back({.begin = begin, .rows = 1 + draw(40), .row_elements = 1 + draw(30)});
    begin = bucket.back().end() + draw(64);
  }
  return bucket;
}

TEST(Ownership, EveryRowHasOneOwnerAndShares) {
  constexpr uint64_t kSeed = 31;
  const Philox random(kSeed, 0);
  for (uint64_t trial = 0; trial < 300; ++trial) {
    const Bucket bucket = random_bucket(random, trial);
    int64_t total = 0, widest_row = 0;
    for (const RowBlock& block : bucket) {
      total += block.rows * block.row_elements;
      widest_row = std::max(widest_row, block.row_elements);
    }
    for (int parts : {1, 2, 3, 8, 57}) {
      SCOPED_TRACE(testing::Message() << "seed " << kSeed << ", trial " << trial << ", parts " << parts);
      const std::vector<Slice> slices = cut_at_rows(bucket, parts);
      ASSERT_EQ(std::ssize(slices), parts);
      ASSERT_EQ(slices.front().begin, range_of(bucket).begin);
      ASSERT_EQ(slices.back().end(), range_of(bucket).end());
      std::vector<std::vector<int>> owners(bucket.size());
      for (size_t i = 0; i < bucket.size(); ++i) owners[i].resize(static_cast<size_t>(bucket[i].rows));
      for (size_t part = 0; part < slices.size(); ++part) {
        if (part > 0) {
          ASSERT_EQ(slices[part].begin, slices[part - 1].end());
        }
        int64_t elements = 0;
        for (const OwnedRowBlock& owned : rows_in(bucket, slices[part])) {
          const RowBlock& block = bucket[static_cast<size_t>(owned.block)];
          ASSERT_EQ(owned.elements.begin, block.begin + owned.first_row * block.row_elements);
          ASSERT_EQ(owned.elements.count, owned.rows * block.row_elements);
          elements += owned.elements.count;
          for (int64_t r = 0; r < owned.rows; ++r) {
            ++owners[static_cast<size_t>(owned.block)][static_cast<size_t>(owned.first_row + r)];
          }
        }
        // Each end of a share is within half a row of its place.
        ASSERT_LE(std::abs(elements - total / parts), widest_row + 1);
      }
      for (const auto& rows : owners) {
        for (int count : rows) ASSERT_EQ(count, 1);
      }
    }
  }
}

TEST(Ownership, KnownCuts) {
  // A matrix of 4 rows of 10, 24 elements of padding, a vector of 8.
  const Bucket bucket{{.begin = 0, .rows = 4, .row_elements = 10}, {.begin = 64, .rows = 8, .row_elements = 1}};
  EXPECT_EQ(cut_at_rows(bucket, 2), (std::vector<Slice>{{0, 20}, {20, 52}}));
  EXPECT_EQ(rows_in(bucket, {20, 52}), (std::vector<OwnedRowBlock>{{0, 2, 2, {20, 20}}, {1, 0, 8, {64, 8}}}));
  EXPECT_EQ(cut_at_rows(bucket, 1), (std::vector<Slice>{{0, 72}}));
  // Shares of 16: the ends 16, 32, 48 go to the nearest row ends, 20, 30 and 72.
  EXPECT_EQ(cut_at_rows(bucket, 3), (std::vector<Slice>{{0, 20}, {20, 10}, {30, 42}}));
  EXPECT_EQ(cut_at_rows({}, 3), (std::vector<Slice>{{0, 0}, {0, 0}, {0, 0}}));
}

TEST(Ownership, RefusesOverlaps) {
  const Bucket ascending{{.begin = 0, .rows = 2, .row_elements = 5}, {.begin = 10, .rows = 1, .row_elements = 5}};
  const Bucket overlapping{{.begin = 0, .rows = 2, .row_elements = 5}, {.begin = 9, .rows = 1, .row_elements = 5}};
  const Bucket inside{{.begin = 12, .rows = 1, .row_elements = 1}};
  const Bucket empty_rows{{.begin = 20, .rows = 0, .row_elements = 1}};
  EXPECT_NO_THROW(check_buckets(std::vector<Bucket>{ascending, Bucket{}}));
  EXPECT_THROW(check_buckets(std::vector<Bucket>{overlapping}), Error);
  EXPECT_THROW(check_buckets((std::vector<Bucket>{ascending, inside})), Error);
  EXPECT_THROW(check_buckets(std::vector<Bucket>{empty_rows}), Error);
  EXPECT_THROW(rows_in(ascending, {3, 4}), Error);  // within a row
}

TEST(Shard, NearEqualPartsCoverTheRange) {
  for (int64_t total : {0, 1, 7, 64, 1000}) {
    for (int64_t parts : {1, 3, 7, 64}) {
      int64_t next = 0;
      for (int64_t i = 0; i < parts; ++i) {
        const Slice slice = shard_of(total, i, parts);
        EXPECT_EQ(slice.begin, next);
        EXPECT_LE(std::abs(slice.count - total / parts), 1);
        next = slice.end();
      }
      EXPECT_EQ(next, total);
    }
  }
  EXPECT_THROW(exact_shard_of(10, 0, 4), Error);
}

}  // namespace
}  // namespace tmamba
