// Parallel loops over tasks of a fixed size. What a task computes never depends on the number of threads or on which
// thread runs it, so results have the same bits for any OMP_NUM_THREADS.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

#include "kernels/base/check.h"
#include "kernels/cpu/denormals.h"

namespace tmamba {

// Calls f(0) .. f(tasks - 1), each once, on any threads, with denormals flushed; the first exception is thrown again
// here.
template <class F>
void parallel_tasks(int64_t tasks, const F& f) {
  if (tasks <= 1 || omp_get_max_threads() == 1) {
    const FlushDenormals flush;
    for (int64_t i = 0; i < tasks; ++i) f(i);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel
  {
    const FlushDenormals flush;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < tasks; ++i) {
      try {
        f(i);
      } catch (...) {
#pragma omp critical(tmamba_parallel_tasks)
        if (!failure) failure = std::current_exception();
      }
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// Calls f(begin, end) for consecutive blocks of at most `block` of the n items.
template <class F>
void parallel_blocks(int64_t n, int64_t block, const F& f) {
  parallel_tasks(ceil_div(n, block), [&](int64_t i) { f(i * block, std::min((i + 1) * block, n)); });
}

// Rows of `width` elements that make a block worth a task.
inline int64_t rows_per_block(int64_t width) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)); }

// Splits n rows into at most 64 groups of at least `smallest` rows, depending on these two numbers only: one partial
// sum per group, combined in order.
struct RowGroups {
  int64_t rows, rows_per_group, count;
  explicit RowGroups(int64_t n, int64_t smallest = 32)
      : rows(n), rows_per_group(std::max(smallest, ceil_div(n, 64))), count(ceil_div(n, rows_per_group)) {}
  int64_t begin(int64_t group) const { return group * rows_per_group; }
  int64_t end(int64_t group) const { return std::min(rows, begin(group) + rows_per_group); }
};

}  // namespace tmamba
