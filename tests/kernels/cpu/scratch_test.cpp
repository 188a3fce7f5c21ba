#include "kernels/cpu/scratch.h"

#include <gtest/gtest.h>

namespace tmamba {
namespace {

// Memory taken earlier keeps its place and content while the stack outgrows its block, also in nested frames.
TEST(Scratch, GrowsWithoutMovingWhatIsTaken) {
  ScratchFrame frame;
  constexpr int64_t kCount = 300000;
  int* first = frame.take<int>(kCount);
  std::fill_n(first, kCount, 7);
  {
    ScratchFrame inner;
    int* second = inner.take<int>(10 * kCount);
    std::fill_n(second, 10 * kCount, 9);
    int* third = inner.take_zeros<int>(kCount);
    EXPECT_EQ(std::count(third, third + kCount, 0), kCount);
    EXPECT_EQ(std::count(second, second + 10 * kCount, 9), 10 * kCount);
  }
  EXPECT_EQ(std::count(first, first + kCount, 7), kCount);
}

TEST(Scratch, IsAlignedAndReused) {
  float* before = nullptr;
  for (int repeat = 0; repeat < 3; ++repeat) {
    ScratchFrame frame;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(frame.take<char>(1)) % 64, 0u);
    float* now = frame.take<float>(10000000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(now) % 64, 0u);
    if (repeat == 2) {
      EXPECT_EQ(now, before);
    }
    before = now;
  }
}

}  // namespace
}  // namespace tmamba
