// Splits the rows of parameters into the shards that ranks own, where optimizer state is sharded among them. Pure
// arithmetic without communication: any rank, or a program without ranks, can compute the shard of every other rank.
#pragma once

#include <span>
#include <vector>

#include "dist/comm/shard.h"

namespace tmamba {

// One parameter in a flat buffer: `rows` rows of `row_elements` elements, from element `begin`.
struct RowBlock {
  int64_t begin = 0;
  int64_t rows = 0;
  int64_t row_elements = 1;
  // Rows that one rank must own together: 1, or the rows of a whole matrix where the optimizer updates matrices. The
  // block is a whole number of such units.
  int64_t unit_rows = 1;
  // Every tensor-parallel rank holds the whole block and one summand of its gradient.
  bool replicated_over_tp = false;

  int64_t end() const { return begin + rows * row_elements; }
};

// Parameters that are reduced together, for example those of a layer: in ascending order, without overlap; there may be
// padding between them.
using Bucket = std::vector<RowBlock>;

// Elements [begin, end) of the flat buffer from the first to the last element of the bucket, padding included.
Slice range_of(const Bucket& bucket);

// Splits range_of(bucket) into `shards` consecutive slices, each of which begins at a unit of rows. Padding follows the
// row before it and is not counted: each slice has an equal number of the other elements to within one unit.
std::vector<Slice> split_bucket(const Bucket& bucket, int shards);

// Rows [first_row, first_row + rows) of block `block` of a bucket.
struct OwnedRowBlock {
  int block = 0;
  int64_t first_row = 0;
  int64_t rows = 0;
  Slice elements;  // of the flat buffer

  friend bool operator==(const OwnedRowBlock&, const OwnedRowBlock&) = default;
};

// The rows of the bucket in `slice`, which begins and ends at rows.
std::vector<OwnedRowBlock> rows_in(const Bucket& bucket, const Slice& slice);

// Throws Error unless each bucket has ascending blocks of whole units without overlap, and no two buckets' ranges
// overlap.
void check_buckets(std::span<const Bucket> buckets);

}  // namespace tmamba
