// Cross-entropy over a shard [vocab_begin, vocab_begin + V) of the vocabulary. Targets are int32; a negative target is
// not counted.
#pragma once

#include "kernels/ops/op_args.h"

namespace tmamba {

// The statistics of a shard's logits; ranks combine them.
struct CrossEntropyStats {
  static constexpr const char* kName = "cross_entropy_stats";
  static constexpr Split kSplit = Split::rows;
  Tensor max_N;      // [acc]
  Tensor sum_exp_N;  // [acc] sum_v exp(logit_v - max)
  Tensor target_N;   // [acc] the target's logit; 0 where another shard holds it
  ConstTensor logits_NV;
  ConstTensor targets_N;
  int64_t vocab_begin;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.logits_NV.size(0), V = a.logits_NV.size(1);
    const DType A = a.logits_NV.dtype(), acc = accumulate_type(A);
    f(a.max_N, {"max_N", acc, {N}});
    f(a.sum_exp_N, {"sum_exp_N", acc, {N}});
    f(a.target_N, {"target_N", acc, {N}});
    f(a.logits_NV, {"logits_NV", A, {N, V}});
    f(a.targets_N, {"targets_N", DType::i32, {N}});
  }
  OpCounts counts() const { return {.elementwise = 3 * elements(logits_NV)}; }
};

// sum_exp *= exp(max - global_max): makes the sums of shards relative to one maximum before they are added.
struct CrossEntropyRescale {
  static constexpr const char* kName = "cross_entropy_rescale";
  static constexpr Split kSplit = Split::none;
  Tensor sum_exp_N;          // [acc]
  ConstTensor max_N;         // [acc]
  ConstTensor global_max_N;  // [acc]

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.max_N.size(0);
    const DType acc = a.max_N.dtype();
    f(a.sum_exp_N, {"sum_exp_N", acc, {N}});
    f(a.max_N, {"max_N", acc, {N}});
    f(a.global_max_N, {"global_max_N", acc, {N}});
  }
  OpCounts counts() const { return {.elementwise = 3 * elements(sum_exp_N)}; }
};

// loss_sum += sum of (max + log(sum_exp) - target) over counted tokens; count += how many they are.
struct CrossEntropyLoss {
  static constexpr const char* kName = "cross_entropy_loss";
  static constexpr Split kSplit = Split::rows;
  Tensor loss_sum_1;      // [float64]
  Tensor count_1;         // [float64]
  Tensor loss_N = {};     // [acc] the loss of each token; 0 where not counted
  ConstTensor max_N;      // [acc]
  ConstTensor sum_exp_N;  // [acc]
  ConstTensor target_N;   // [acc]
  ConstTensor targets_N;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.max_N.size(0);
    const DType acc = a.max_N.dtype();
    f(a.loss_sum_1, {"loss_sum_1", DType::f64, {1}, kTokenSum});
    f(a.count_1, {"count_1", DType::f64, {1}});
    f(a.loss_N, {"loss_N", acc, {N}, kOptional});
    f(a.max_N, {"max_N", acc, {N}});
    f(a.sum_exp_N, {"sum_exp_N", acc, {N}});
    f(a.target_N, {"target_N", acc, {N}});
    f(a.targets_N, {"targets_N", DType::i32, {N}});
  }
  OpCounts counts() const { return {.elementwise = 4 * elements(max_N)}; }
};

// In place: logits = (softmax(logits) - onehot(target)) * scale; zero rows where the target is not counted.
struct CrossEntropyGradient {
  static constexpr const char* kName = "cross_entropy_gradient";
  static constexpr Split kSplit = Split::rows;
  Tensor logits_NV;
  ConstTensor max_N;      // [acc]
  ConstTensor sum_exp_N;  // [acc]
  ConstTensor targets_N;
  int64_t vocab_begin;
  double scale;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    const int64_t N = a.logits_NV.size(0), V = a.logits_NV.size(1);
    const DType A = a.logits_NV.dtype(), acc = accumulate_type(A);
    f(a.logits_NV, {"logits_NV", A, {N, V}});
    f(a.max_N, {"max_N", acc, {N}});
    f(a.sum_exp_N, {"sum_exp_N", acc, {N}});
    f(a.targets_N, {"targets_N", DType::i32, {N}});
  }
  OpCounts counts() const { return {.elementwise = 4 * elements(logits_NV)}; }
};

#define TMAMBA_LOSS_OPS(X)                      \
  X(cross_entropy_stats, CrossEntropyStats)     \
  X(cross_entropy_rescale, CrossEntropyRescale) \
  X(cross_entropy_loss, CrossEntropyLoss)       \
  X(cross_entropy_gradient, CrossEntropyGradient)

}  // namespace tmamba
