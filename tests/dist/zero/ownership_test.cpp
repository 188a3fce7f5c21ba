#include "dist/zero/ownership.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "dist/zero/zero_sharding.h"
#include "kernels/base/rng.h"

namespace tmamba {
namespace {

// Rows are owned one by one, or in units of several rows.
Bucket random_bucket(const Philox& random, uint64_t stream, bool units) {
  auto draw = [&, counter = stream * 1000](int64_t limit) mutable {
    return static_cast<int64_t>(random.uniform(counter++) * static_cast<double>(limit));
  };
  Bucket bucket;
  int64_t begin = draw(100);
  for (int64_t blocks = 1 + draw(6); blocks > 0; --blocks) {
    const int64_t unit = units ? 1 + draw(20) : 1;
    bucket.push_back(
        {.begin = begin, .rows = unit * (1 + draw(40 / unit)), .row_elements = 1 + draw(30), .unit_rows = unit});
    begin = bucket.back().end() + draw(64);
  }
  return bucket;
}

TEST(Ownership, EveryRowHasOneOwnerAndShardsAreEqual) {
  constexpr uint64_t kSeed = 31;
  const Philox random(kSeed, 0);
  for (uint64_t trial = 0; trial < 300; ++trial) {
    const Bucket bucket = random_bucket(random, trial, trial % 2 == 1);
    ASSERT_NO_THROW(check_buckets(std::vector<Bucket>{bucket}));
    int64_t total = 0, largest_unit = 0;
    for (const RowBlock& block : bucket) {
      total += block.rows * block.row_elements;
      largest_unit = std::max(largest_unit, block.unit_rows * block.row_elements);
    }
    for (int shards : {1, 2, 3, 8, 57}) {
      SCOPED_TRACE(testing::Message() << "seed " << kSeed << ", trial " << trial << ", shards " << shards);
      const std::vector<Slice> slices = split_bucket(bucket, shards);
      ASSERT_EQ(std::ssize(slices), shards);
      ASSERT_EQ(slices.front().begin, range_of(bucket).begin);
      ASSERT_EQ(slices.back().end(), range_of(bucket).end());
      std::vector<std::vector<int>> owners(bucket.size());
      for (size_t i = 0; i < bucket.size(); ++i) owners[i].resize(static_cast<size_t>(bucket[i].rows));
      for (size_t shard = 0; shard < slices.size(); ++shard) {
        if (shard > 0) {
          ASSERT_EQ(slices[shard].begin, slices[shard - 1].end());
        }
        int64_t elements = 0;
        for (const OwnedRowBlock& owned : rows_in(bucket, slices[shard])) {
          const RowBlock& block = bucket[static_cast<size_t>(owned.block)];
          ASSERT_EQ(owned.elements.begin, block.begin + owned.first_row * block.row_elements);
          ASSERT_EQ(owned.elements.count, owned.rows * block.row_elements);
          ASSERT_EQ(owned.first_row % block.unit_rows, 0);
          ASSERT_EQ(owned.rows % block.unit_rows, 0);
          elements += owned.elements.count;
          for (int64_t r = 0; r < owned.rows; ++r) {
            ++owners[static_cast<size_t>(owned.block)][static_cast<size_t>(owned.first_row + r)];
          }
        }
        // Each end of a shard is within half a unit of its place.
        ASSERT_LE(std::abs(elements - total / shards), largest_unit + 1);
      }
      for (const auto& rows : owners) {
        for (int count : rows) ASSERT_EQ(count, 1);
      }
    }
  }
}

TEST(Ownership, KnownSlices) {
  // A matrix of 4 rows of 10, 24 elements of padding, a vector of 8.
  const Bucket bucket{{.begin = 0, .rows = 4, .row_elements = 10}, {.begin = 64, .rows = 8, .row_elements = 1}};
  EXPECT_EQ(split_bucket(bucket, 2), (std::vector<Slice>{{0, 20}, {20, 52}}));
  EXPECT_EQ(rows_in(bucket, {20, 52}), (std::vector<OwnedRowBlock>{{0, 2, 2, {20, 20}}, {1, 0, 8, {64, 8}}}));
  EXPECT_EQ(split_bucket(bucket, 1), (std::vector<Slice>{{0, 72}}));
  // Shards of 16: the ends 16, 32, 48 go to the nearest ends of rows, 20, 30 and 72.
  EXPECT_EQ(split_bucket(bucket, 3), (std::vector<Slice>{{0, 20}, {20, 10}, {30, 42}}));
  EXPECT_EQ(split_bucket({}, 3), (std::vector<Slice>{{0, 0}, {0, 0}, {0, 0}}));
}

TEST(Ownership, KnownSlicesOfWholeMatrices) {
  // Two matrices of 4 rows of 10 in one block (as q and k in qkv), 16 elements of padding, a matrix of 2 rows of 16.
  const Bucket bucket{{.begin = 0, .rows = 8, .row_elements = 10, .unit_rows = 4},
                      {.begin = 96, .rows = 2, .row_elements = 16, .unit_rows = 2}};
  EXPECT_EQ(split_bucket(bucket, 2), (std::vector<Slice>{{0, 40}, {40, 88}}));
  EXPECT_EQ(rows_in(bucket, {40, 88}), (std::vector<OwnedRowBlock>{{0, 4, 4, {40, 40}}, {1, 0, 2, {96, 32}}}));
  EXPECT_EQ(split_bucket(bucket, 3), (std::vector<Slice>{{0, 40}, {40, 56}, {96, 32}}));
  // More shards than matrices: each matrix has one owner, and other ranks own nothing.
  EXPECT_EQ(split_bucket(bucket, 5), (std::vector<Slice>{{0, 40}, {40, 0}, {40, 56}, {96, 0}, {96, 32}}));
}

TEST(Zero, StagesAnswerTheirQuestions) {
  const Bucket bucket{{.begin = 0, .rows = 4, .row_elements = 10}, {.begin = 64, .rows = 8, .row_elements = 1}};
  const ZeroSharding none(0, 2), optimizer(1, 2), gradients(2, 2);
  EXPECT_FALSE(none.shards_optimizer());
  EXPECT_FALSE(none.represents_owned(1));
  EXPECT_EQ(none.owners(), 1);
  EXPECT_EQ(none.slice(bucket, 1), (Slice{0, 72}));
  EXPECT_TRUE(optimizer.shards_optimizer());
  EXPECT_TRUE(optimizer.represents_owned(1));
  EXPECT_FALSE(optimizer.reduces_after(false));
  EXPECT_FALSE(optimizer.clears_gradients_before(false));
  EXPECT_EQ(optimizer.reductions(6), 1);
  EXPECT_EQ(optimizer.summands(6), 2);
  EXPECT_EQ(optimizer.slice(bucket, 1), (Slice{20, 52}));
  EXPECT_EQ(optimizer.extra_gradient_elements(bucket, 1), 0);
  EXPECT_TRUE(gradients.shards_optimizer());
  EXPECT_TRUE(gradients.reduces_after(false));
  EXPECT_TRUE(gradients.clears_gradients_before(false));
  EXPECT_EQ(gradients.reductions(6), 6);
  EXPECT_EQ(gradients.summands(6), 12);
  EXPECT_EQ(gradients.extra_gradient_elements(bucket, 1), 2 * 52);
  // One replica has nobody to share with.
  const ZeroSharding alone(2, 1);
  EXPECT_FALSE(alone.shards_optimizer());
  EXPECT_EQ(alone.reductions(6), 1);
  EXPECT_THROW(ZeroSharding(3, 1), UserError);
  EXPECT_THROW(ZeroSharding(-1, 4), UserError);
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
  EXPECT_THROW(check_buckets(std::vector<Bucket>{{{.begin = 0, .rows = 3, .row_elements = 1, .unit_rows = 2}}}), Error);
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
