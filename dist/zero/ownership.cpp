#include "dist/zero/ownership.h"

#include <algorithm>

namespace tmamba {

Slice range_of(const Bucket& bucket) {
  if (bucket.empty()) return {};
  return {bucket.front().begin, bucket.back().end() - bucket.front().begin};
}

namespace {

int64_t elements_of(const Bucket& bucket) {
  int64_t n = 0;
  for (const RowBlock& block : bucket) n += block.rows * block.row_elements;
  return n;
}

// Where a slice may end that should hold `count` elements of the bucket from its beginning, padding not counted: the
// nearest beginning of a unit of rows.
int64_t nearest_unit(const Bucket& bucket, int64_t count) {
  for (const RowBlock& block : bucket) {
    const int64_t size = block.rows * block.row_elements;
    if (count < size) {
      const int64_t unit = block.unit_rows * block.row_elements;
      const int64_t end = (count + unit / 2) / unit * unit;
      if (end < size) return block.begin + end;
      count = size;  // rounded up to the end of this block, which is the beginning of the next
    }
    count -= size;
    if (count == 0 && &block != &bucket.back()) return (&block + 1)->begin;
  }
  return range_of(bucket).end();
}

}  // namespace

std::vector<Slice> split_bucket(const Bucket& bucket, int shards) {
  const Slice range = range_of(bucket);
  const int64_t total = elements_of(bucket);
  std::vector<Slice> slices;
  int64_t begin = range.begin;
  for (int shard = 0; shard < shards; ++shard) {
    const int64_t end = shard + 1 == shards ? range.end() : nearest_unit(bucket, shard_of(total, shard, shards).end());
    slices.push_back({begin, end - begin});
    begin = end;
  }
  return slices;
}

std::vector<OwnedRowBlock> rows_in(const Bucket& bucket, const Slice& slice) {
  std::vector<OwnedRowBlock> owned;
  for (size_t i = 0; i < bucket.size(); ++i) {
    const RowBlock& block = bucket[i];
    const int64_t begin = std::max(block.begin, slice.begin), end = std::min(block.end(), slice.end());
    if (begin >= end) continue;
    owned.push_back({.block = static_cast<int>(i),
                     .first_row = exact_div(begin - block.begin, block.row_elements),
                     .rows = exact_div(end - begin, block.row_elements),
                     .elements = {begin, end - begin}});
  }
  return owned;
}

void check_buckets(std::span<const Bucket> buckets) {
  std::vector<Slice> ranges;
  for (const Bucket& bucket : buckets) {
    for (size_t i = 0; i < bucket.size(); ++i) {
      const RowBlock& block = bucket[i];
      TM_CHECK(block.begin >= 0 && block.rows > 0 && block.row_elements > 0 && block.unit_rows > 0 &&
                   block.rows % block.unit_rows == 0,
               "a bucket has a block of ", block.rows, " rows of ", block.row_elements, " elements at ", block.begin,
               " in units of ", block.unit_rows, " rows");
      TM_CHECK(i == 0 || bucket[i - 1].end() <= block.begin, "the block at ", block.begin,
               " of a bucket begins before the end ", bucket[i - 1].end(), " of the previous block");
    }
    if (!bucket.empty()) ranges.push_back(range_of(bucket));
  }
  std::ranges::sort(ranges, {}, &Slice::begin);
  for (size_t i = 1; i < ranges.size(); ++i) {
    TM_CHECK(ranges[i - 1].end() <= ranges[i].begin, "the buckets at elements ", ranges[i - 1].begin, " and ",
             ranges[i].begin, " overlap");
  }
}

}  // namespace tmamba
