#include "kernels/cpu/parallel.h"

#include <gtest/gtest.h>

#include <vector>

namespace tmamba {
namespace {

// Runs `check` with 1 and 4 threads.
template <class F>
void with_threads(const F& check) {
  const int before = omp_get_max_threads();
  for (int threads : {1, 4}) {
    omp_set_num_threads(threads);
    check();
  }
  omp_set_num_threads(before);
}

TEST(Parallel, EveryItemOnce) {
  with_threads([] {
    for (int64_t n : {0, 1, 7, 8, 9, 1000}) {
      std::vector<int> calls(static_cast<size_t>(n));
      parallel_blocks(n, 8, [&](int64_t begin, int64_t end) {
        EXPECT_EQ(begin % 8, 0);
        EXPECT_LE(end - begin, 8);
        for (int64_t i = begin; i < end; ++i) ++calls[static_cast<size_t>(i)];
      });
      EXPECT_EQ(calls, std::vector<int>(static_cast<size_t>(n), 1));
    }
  });
}

TEST(Parallel, AnErrorOfATaskReachesTheCaller) {
  with_threads([] { EXPECT_THROW(parallel_tasks(20, [](int64_t i) { TM_CHECK(i != 13, "task ", i); }), Error); });
}

TEST(Parallel, GroupsCoverTheRows) {
  for (int64_t n : {1, 31, 32, 33, 2047, 2048, 2049, 100000}) {
    const RowGroups groups(n);
    EXPECT_LE(groups.count, 64);
    int64_t next = 0;
    for (int64_t g = 0; g < groups.count; ++g) {
      EXPECT_EQ(groups.begin(g), next);
      EXPECT_GT(groups.end(g), groups.begin(g));
      next = groups.end(g);
    }
    EXPECT_EQ(next, n);
  }
}

// What ops do about denormal numbers must not leak into the program around them.
TEST(Parallel, TheCallerKeepsItsDenormals) {
  with_threads([] {
    volatile float denormal = 1e-40f;
    parallel_tasks(8, [](int64_t) {});
    EXPECT_GT(denormal * 0.5f, 0.0f);
  });
}

}  // namespace
}  // namespace tmamba
