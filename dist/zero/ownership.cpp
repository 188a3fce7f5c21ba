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

// The row boundary nearest to the element that `before` elements, padding not counted, come before.
int64_t nearest_row(const Bucket& bucket, int64_t before) {
  for (const RowBlock& block : bucket) {
    const int64_t size = block.rows * block.row_elements;
    if (before < size) {
      const int64_t row = (before + block.row_elements / 2) / block.row_elements;
      if (row < block.rows) return block.begin + row * block.row_elements;
      before = size;  // rounded up to the end of this block, which is the beginning of the next
    }
    before -= size;
    if (before == 0 && &block != &bucket.back()) return (&block + 1)->begin;
  }
  return range_of(bucket).end();
}

}  // namespace

std::vector<Slice> cut_at_rows(const Bucket& bucket, int parts) {
  const Slice range = range_of(bucket);
  const int64_t total = elements_of(bucket);
  std::vector<Slice> slices;
  int64_t begin = range.begin;
  for (int part = 0; part < parts; ++part) {
    const int64_t end = part + 1 == parts ? range.end() : nearest_row(bucket, shard_of(total, part, parts).end());
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
      TM_CHECK(block.begin >= 0 && block.rows > 0 && block.row_elements > 0, "a block of ", block.rows, " rows of ",
               block.row_elements, " elements at ", block.begin);
      TM_CHECK(i == 0 || bucket[i - 1].end() <= block.begin, "the block at ", block.begin,
               " of a bucket begins before the end of the one before it, ", bucket[i - 1].end());
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
