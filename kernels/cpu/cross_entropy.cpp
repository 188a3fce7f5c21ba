#include <cmath>
#include <limits>

#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec_math.h"

namespace tmamba {

namespace {

constexpr int64_t kTokens = 1024;  // of a block of the loss, summed in order

template <class A>
A row_max(const A* x, int64_t count) {
  A out = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : out)
  for (int64_t i = 0; i < count; ++i) out = x[i] > out ? x[i] : out;
  return out;
}

// Summed in float64 over blocks: a vocabulary is long enough for a float32 sum to lose digits.
template <class A>
A row_sum_exp(const A* x, A max, int64_t count) {
  constexpr int64_t kBlock = 1024;
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += fast_exp(x[i] - max);
    total += static_cast<double>(sum);
  }
  return static_cast<A>(total);
}

}  // namespace

void CpuOps::cross_entropy_stats(const CrossEntropyStats& args) {
  const int64_t N = args.logits_NV.size(0), V = args.logits_NV.size(1);
  check_args(Device::cpu, args);
  if (N == 0) return;
  dispatch_float(args.logits_NV.dtype(), [&]<class A>() {
    const auto logits = rows<A>(args.logits_NV);
    A* max = args.max_N.data<A>();
    A* sum_exp = args.sum_exp_N.data<A>();
    A* target = args.target_N.data<A>();
    const int32_t* targets = args.targets_N.data<int32_t>();
    parallel_blocks(N, rows_per_block(V), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        max[n] = row_max(logits[n], V);
        sum_exp[n] = row_sum_exp(logits[n], max[n], V);
        const int64_t column = targets[n] - args.vocab_begin;
        target[n] = targets[n] >= 0 && column >= 0 && column < V ? logits[n][column] : A(0);
      }
    });
  });
}

void CpuOps::cross_entropy_rescale(const CrossEntropyRescale& args) {
  const int64_t N = args.max_N.size(0);
  check_args(Device::cpu, args);
  dispatch_float(args.max_N.dtype(), [&]<class A>() {
    A* sum_exp = args.sum_exp_N.data<A>();
    const A *max = args.max_N.data<A>(), *global_max = args.global_max_N.data<A>();
    for (int64_t n = 0; n < N; ++n) sum_exp[n] *= std::exp(max[n] - global_max[n]);
  });
}

void CpuOps::cross_entropy_loss(const CrossEntropyLoss& args) {
  const int64_t N = args.max_N.size(0);
  check_args(Device::cpu, args);
  if (N == 0) return;
  dispatch_float(args.max_N.dtype(), [&]<class A>() {
    const A* max = args.max_N.data<A>();
    const A* sum_exp = args.sum_exp_N.data<A>();
    const A* target = args.target_N.data<A>();
    const int32_t* targets = args.targets_N.data<int32_t>();
    A* loss = vector_of<A>(args.loss_N);
    const int64_t blocks = ceil_div(N, kTokens);
    ScratchFrame frame;
    double* partial = frame.take<double>(blocks);
    double* counted = frame.take<double>(blocks);
    parallel_blocks(N, kTokens, [&](int64_t begin, int64_t end) {
      double sum = 0, count = 0;
      for (int64_t n = begin; n < end; ++n) {
        const bool counts = targets[n] >= 0;
        const A value = counts ? max[n] + std::log(sum_exp[n]) - target[n] : A(0);
        if (loss != nullptr) loss[n] = value;
        sum += static_cast<double>(value);
        count += counts ? 1 : 0;
      }
      partial[begin / kTokens] = sum;
      counted[begin / kTokens] = count;
    });
    for (int64_t block = 0; block < blocks; ++block) {
      *args.loss_sum_1.data<double>() += partial[block];
      *args.count_1.data<double>() += counted[block];
    }
  });
}

void CpuOps::cross_entropy_gradient(const CrossEntropyGradient& args) {
  const int64_t N = args.logits_NV.size(0), V = args.logits_NV.size(1);
  check_args(Device::cpu, args);
  if (N == 0) return;
  dispatch_float(args.logits_NV.dtype(), [&]<class A>() {
    const auto logits = rows<A>(args.logits_NV);
    const A* max = args.max_N.data<A>();
    const A* sum_exp = args.sum_exp_N.data<A>();
    const int32_t* targets = args.targets_N.data<int32_t>();
    parallel_blocks(N, rows_per_block(V), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        A* row = logits[n];
        if (targets[n] < 0) {
          std::fill_n(row, V, A(0));
          continue;
        }
        const A factor = static_cast<A>(args.scale) / sum_exp[n], shift = max[n];
#pragma omp simd
        for (int64_t v = 0; v < V; ++v) row[v] = fast_exp(row[v] - shift) * factor;
        const int64_t column = targets[n] - args.vocab_begin;
        if (column >= 0 && column < V) row[column] -= static_cast<A>(args.scale);
      }
    });
  });
}

}  // namespace tmamba
