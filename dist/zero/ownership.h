// Who owns which rows of the parameters where optimizer state is cut among ranks. Pure arithmetic, no communication:
// any rank, or a program without ranks, can work out the share of any other.
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
  // Every tensor-parallel rank has all of it, and a part of its gradient.
  bool replicated_over_tp = false;

  int64_t end() const { return begin + rows * row_elements; }
};

// Parameters that are reduced together, for example those of a layer: in ascending order, without overlap; there may be
// padding between them.
using Bucket = std::vector<RowBlock>;

// Elements [begin, end) of the flat buffer from the first to the last element of the bucket, padding included.
Slice range_of(const Bucket& bucket);

// Cuts range_of(bucket) into `parts` slices, back to back, each beginning at the beginning of a row. Padding counts for
// nothing and follows the row before it; apart from it each slice has its equal share of the elements to within a row.
std::vector<Slice> cut_at_rows(const Bucket& bucket, int parts);

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

// Throws Error unless each bucket has ascending blocks without overlap, and no two buckets' ranges overlap.
void check_buckets(std::span<const Bucket> buckets);

}  // namespace tmamba
