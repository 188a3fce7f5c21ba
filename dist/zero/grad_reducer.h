// class GradReducer: sums gradients over all ranks that hold the same parameters, bucket by bucket while the backward
// pass runs, and hands updated parameters back (ZeRO, Rajbhandari et al., SC 2020).
//
//   stage 0   every rank gets every sum and updates every parameter
//   stage 1   each rank gets the sums of the rows it owns, updates those, and the parameters are gathered; the sum is
//             made once a step, of gradients that each rank has accumulated over its micro-batches
//   stage 2   as stage 1, but each micro-batch is summed at once and accumulated for the owned rows alone, so that
//             a bucket's gradients need no memory after bucket_done()
//
// Gradients are summed, never averaged: the loss divides by the global count of tokens. With one rank nothing moves.
//
//   for each micro-batch: backward, and as each bucket is final:  reducer.start(bucket, grads of the bucket)
//                         reducer.finish()                        stage 2: every one; stage 0, 1: the last one alone
//   optimizer on owned(bucket), gradients from gradient()
//   reducer.gather_parameters(params)
#pragma once

#include <functional>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/zero/ownership.h"
#include "kernels/base/buffer.h"

namespace tmamba {

struct GradReducerOptions {
  int stage = 1;
  // Stage 2: type and place of the gradients, and y += x on them, ordered before later communication.
  DType dtype = DType::f32;
  Device device = Device::cpu;
  std::function<void(Tensor y, ConstTensor x)> add;
};

class GradReducer {
 public:
  // `zero`: the ranks that hold the same parameters (Mesh::zero). `tp`: the ranks over which the gradients of
  // replicated blocks are summed too. Both must outlive the reducer. Blocks are in elements of a flat buffer, in which
  // all ranks have the same buckets. Throws UserError for an unknown stage.
  GradReducer(Communicator& zero, Communicator& tp, std::vector<Bucket> buckets, GradReducerOptions options);
  // Without tensor parallelism.
  GradReducer(Communicator& zero, std::vector<Bucket> buckets, GradReducerOptions options);

  int buckets() const { return static_cast<int>(buckets_.size()); }
  // 0 where one rank owns everything anyway.
  int stage() const { return stage_; }
  // Elements of the flat buffer that the bucket takes, padding included.
  Slice bucket_range(int bucket) const { return buckets_[at(bucket)].range; }
  // The rows this rank owns: it alone updates them (stage 0: every rank updates all).
  const std::vector<OwnedRowBlock>& owned(int bucket) const { return buckets_[at(bucket)].owned; }
  // Elements in owned() of all buckets.
  int64_t owned_elements() const;

  // Starts the sum of a bucket. `grads` [bucket_range(bucket).count]: its gradients, of this rank; they must not be
  // touched before bucket_done(bucket) or finish(). All ranks start the same buckets in the same order.
  // After it: stage 0 all sums in `grads`, stage 1 those of owned rows in `grads`, the rest being undefined; stage 2
  // added to what gradient() gives.
  void start(int bucket, Tensor grads);
  // Returns when the sum of this bucket is done.
  void bucket_done(int bucket);
  // bucket_done of all. Throws Error unless every bucket was started exactly once since the last finish().
  void finish();
  // Stage 2: forget the sums of the last step. Stages 0 and 1: nothing to do.
  void begin_step();

  // The summed gradients of owned rows, [rows, row_elements]. `flat_grads` is the flat buffer whose buckets were given
  // to start(); stage 2 does not look at it.
  Tensor gradient(const Tensor& flat_grads, int bucket, const OwnedRowBlock& rows) const;

  // Every rank's owned rows of the flat buffer `params`, to all ranks. Waits for all of them.
  void gather_parameters(Tensor params);

 private:
  struct BucketState {
    Bucket blocks;
    Slice range;
    std::vector<int64_t> counts;  // elements of each zero rank's slice of the range
    Slice own;                    // this rank's slice, in the flat buffer
    std::vector<OwnedRowBlock> owned;
    Work work;
    bool started = false;
    // Stage 2.
    int64_t packed_begin = 0;  // of `own` in sums_
    bool has_sum = false;      // sums_ holds something
    bool staged = false;       // the work ends in incoming_, to be added
  };

  static size_t at(int bucket) { return static_cast<size_t>(bucket); }
  void sum_replicated(const BucketState& bucket, const Tensor& grads);
  Tensor packed(const Buffer& buffer, const BucketState& bucket) const;

  Communicator& zero_;
  Communicator* tp_;
  int stage_;
  GradReducerOptions options_;
  std::vector<BucketState> buckets_;
  Buffer sums_, incoming_;  // stage 2: owned gradients of all buckets, back to back; and those not yet added
};

}  // namespace tmamba
