#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/views.h"

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

void CpuOps::cross_entropy_stats(Tensor max_N, Tensor sum_exp_N, Tensor target_N, ConstTensor logits_NV,
                                 ConstTensor targets_N, int64_t vocab_begin) {
  const int64_t N = logits_NV.size(0), V = logits_NV.size(1);
  const DType acc = accumulate_type(logits_NV.dtype());
  expect(max_N, "cross_entropy max_N", acc, {N});
  expect(sum_exp_N, "cross_entropy sum_exp_N", acc, {N});
  expect(target_N, "cross_entropy target_N", acc, {N});
  expect(logits_NV, "cross_entropy logits_NV", logits_NV.dtype(), {N, V});
  expect(targets_N, "cross_entropy targets_N", DType::i32, {N});
  if (N == 0) return;
  dispatch_float(logits_NV.dtype(), [&]<class A>() {
    const auto logits = rows<A>(logits_NV);
    A* max = max_N.data<A>();
    A* sum_exp = sum_exp_N.data<A>();
    A* target = target_N.data<A>();
    const int32_t* targets = targets_N.data<int32_t>();
    parallel_blocks(N, rows_per_block(V), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        max[n] = row_max(logits[n], V);
        sum_exp[n] = row_sum_exp(logits[n], max[n], V);
        const int64_t column = targets[n] - vocab_begin;
        target[n] = targets[n] >= 0 && column >= 0 && column < V ? logits[n][column] : A(0);
      }
    });
  });
}

void CpuOps::cross_entropy_rescale(Tensor sum_exp_N, ConstTensor max_N, ConstTensor global_max_N) {
  const int64_t N = max_N.size(0);
  const DType acc = max_N.dtype();
  expect(sum_exp_N, "cross_entropy_rescale sum_exp_N", acc, {N});
  expect(max_N, "cross_entropy_rescale max_N", acc, {N});
  expect(global_max_N, "cross_entropy_rescale global_max_N", acc, {N});
  dispatch_float(acc, [&]<class A>() {
    A* sum_exp = sum_exp_N.data<A>();
    const A *max = max_N.data<A>(), *global_max = global_max_N.data<A>();
    for (int64_t n = 0; n < N; ++n) sum_exp[n] *= std::exp(max[n] - global_max[n]);
  });
}

void CpuOps::cross_entropy_loss(Tensor loss_sum_1, Tensor count_1, Tensor loss_N, ConstTensor max_N,
                                ConstTensor sum_exp_N, ConstTensor target_N, ConstTensor targets_N) {
  const int64_t N = max_N.size(0);
  const DType acc = max_N.dtype();
  expect(loss_sum_1, "cross_entropy loss_sum_1", DType::f64, {1});
  expect(count_1, "cross_entropy count_1", DType::f64, {1});
  expect_optional(loss_N, "cross_entropy loss_N", acc, {N});
  expect(max_N, "cross_entropy max_N", acc, {N});
  expect(sum_exp_N, "cross_entropy sum_exp_N", acc, {N});
  expect(target_N, "cross_entropy target_N", acc, {N});
  expect(targets_N, "cross_entropy targets_N", DType::i32, {N});
  if (N == 0) return;
  dispatch_float(acc, [&]<class A>() {
    const A* max = max_N.data<A>();
    const A* sum_exp = sum_exp_N.data<A>();
    const A* target = target_N.data<A>();
    const int32_t* targets = targets_N.data<int32_t>();
    A* loss = vector_of<A>(loss_N);
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
      *loss_sum_1.data<double>() += partial[block];
      *count_1.data<double>() += counted[block];
    }
  });
}

void CpuOps::cross_entropy_gradient(Tensor logits_NV, ConstTensor max_N, ConstTensor sum_exp_N, ConstTensor targets_N,
                                    int64_t vocab_begin, double scale) {
  const int64_t N = logits_NV.size(0), V = logits_NV.size(1);
  const DType acc = accumulate_type(logits_NV.dtype());
  expect(logits_NV, "cross_entropy logits_NV", logits_NV.dtype(), {N, V});
  expect(max_N, "cross_entropy max_N", acc, {N});
  expect(sum_exp_N, "cross_entropy sum_exp_N", acc, {N});
  expect(targets_N, "cross_entropy targets_N", DType::i32, {N});
  if (N == 0) return;
  dispatch_float(logits_NV.dtype(), [&]<class A>() {
    const auto logits = rows<A>(logits_NV);
    const A* max = max_N.data<A>();
    const A* sum_exp = sum_exp_N.data<A>();
    const int32_t* targets = targets_N.data<int32_t>();
    parallel_blocks(N, rows_per_block(V), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        A* row = logits[n];
        if (targets[n] < 0) {
          std::fill_n(row, V, A(0));
          continue;
        }
        const A factor = static_cast<A>(scale) / sum_exp[n], shift = max[n];
#pragma omp simd
        for (int64_t v = 0; v < V; ++v) row[v] = fast_exp(row[v] - shift) * factor;
        const int64_t column = targets[n] - vocab_begin;
        if (column >= 0 && column < V) row[column] -= static_cast<A>(scale);
      }
    });
  });
}

}  // namespace tmamba
