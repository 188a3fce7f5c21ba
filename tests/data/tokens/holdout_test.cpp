#include "data/tokens/holdout.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace tmamba {
namespace {

TEST(HoldOut, KeepsTheFractionEverywhere) {
  for (double share : {0.001, 0.01, 0.03, 0.1, 0.25, 0.5}) {
    for (uint64_t seed : {0, 1, 2}) {
      const HoldOut hold_out(share, seed);
      const auto n = static_cast<int64_t>(200 / share);
      int64_t held = 0, longest_gap = 0, last = 0;
      for (int64_t i = 0; i < n; ++i) {
        if (!hold_out.holds_out(i)) continue;
        ++held;
        longest_gap = std::max(longest_gap, i - last);
        last = i;
      }
      EXPECT_NEAR(static_cast<double>(held), 200, share < 0.3 ? 1 : 40) << share << " seed " << seed;
      EXPECT_LE(static_cast<double>(longest_gap), 2 / share + 1) << share << " seed " << seed;
    }
  }
  EXPECT_FALSE(HoldOut(0, 1).holds_out(0));
}

TEST(HoldOut, KeepsTheShareBeyond32Bits) {
  for (const int64_t first : {int64_t{1} << 32, int64_t{1} << 40, int64_t{1} << 44}) {
    const HoldOut hold_out(0.01, 5);
    int64_t held = 0;
    for (int64_t i = first - 10'000; i < first + 10'000; ++i) held += hold_out.holds_out(i) ? 1 : 0;
    EXPECT_NEAR(static_cast<double>(held), 200, 1) << first;
  }
}

TEST(HoldOut, SeedsDiffer) {
  const HoldOut a(0.1, 1), b(0.1, 2);
  int both = 0;
  for (int64_t i = 0; i < 10'000; ++i) both += a.holds_out(i) && b.holds_out(i) ? 1 : 0;
  EXPECT_NEAR(both, 100, 50);
}

}  // namespace
}  // namespace tmamba
