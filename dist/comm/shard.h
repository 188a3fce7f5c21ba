// shard_of: the slice of a range that a rank owns. Pure integer arithmetic, no communication.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/check.h"

namespace tmamba {

// Elements [begin, begin + count) of a range.
struct Slice {
  int64_t begin = 0;
  int64_t count = 0;
  constexpr int64_t end() const { return begin + count; }
  friend constexpr bool operator==(const Slice&, const Slice&) = default;
};

// Shard `index` of [0, total) split into `parts` consecutive shards whose sizes differ by at most one, larger ones
// first.
constexpr Slice shard_of(int64_t total, int64_t index, int64_t parts) {
  const int64_t base = total / parts, larger = total % parts;
  return {index * base + std::min(index, larger), base + (index < larger ? 1 : 0)};
}

// The same with shards of equal size; throws Error unless `parts` divides `total`.
constexpr Slice exact_shard_of(int64_t total, int64_t index, int64_t parts) {
  if (parts <= 0 || total % parts != 0) {
    throw Error(str("cannot split ", total, " into ", parts, " equal shards: ", total, " is not divisible by ", parts));
  }
  return {index * (total / parts), total / parts};
}

static_assert(shard_of(10, 0, 4) == Slice{0, 3} && shard_of(10, 1, 4) == Slice{3, 3});
static_assert(shard_of(10, 2, 4) == Slice{6, 2} && shard_of(10, 3, 4) == Slice{8, 2});
static_assert(shard_of(2, 1, 4) == Slice{1, 1} && shard_of(2, 3, 4) == Slice{2, 0});
static_assert(exact_shard_of(12, 2, 4).begin == 6);
static_assert(shard_of(int64_t{1} << 40, 7, 8).end() == int64_t{1} << 40);

}  // namespace tmamba
