// A random order of n things as a pure function: no table, no state.
#pragma once

#include "kernels/base/check.h"
#include "kernels/base/rng.h"

namespace tmamba {

// Place of `index` in a permutation of [0, size) drawn by `random`. A Feistel network permutes the smallest 4^k >= size
// numbers; results outside [0, size) are sent through again (cycle walking), on average fewer than four times. At least
// 4^3 numbers: with fewer, some orders are noticeably more likely than others.
inline int64_t permute(int64_t index, int64_t size, const Philox& random) {
  TM_CHECK(index >= 0 && index < size, "index ", index, " of ", size);
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
