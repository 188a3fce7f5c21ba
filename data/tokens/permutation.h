// A random permutation as a pure function, without a table.
#pragma once

#include "kernels/base/check.h"
#include "kernels/base/rng.h"

namespace tmamba {

// The image of `index` under a permutation of [0, size) that `random` selects. A Feistel network permutes [0, 4^k) for
// the smallest 4^k >= size; results outside [0, size) are permuted again (cycle walking), on average fewer than four
// times. k is at least 3, because smaller networks make some permutations noticeably more likely than others.
inline int64_t permute(int64_t index, int64_t size, const Philox& random) {
  TM_CHECK(index >= 0 && index < size, "index ", index, " is outside [0, ", size, ")");
  constexpr uint64_t kRounds = 8;
  int half = 3;
  while (half < 31 && (int64_t{1} << (2 * half)) < size) ++half;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  auto place = static_cast<uint64_t>(index);
  do {
    uint64_t left = place >> half, right = place & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t mixed = left ^ (random.words(round << 32 | right)[0] & mask);
      left = right;
      right = mixed;
    }
    place = left << half | right;
  } while (place >= static_cast<uint64_t>(size));
  return static_cast<int64_t>(place);
}

}  // namespace tmamba
