// class GradReducer: sums gradients over all ranks that hold the same parameters, one bucket at a time while the
// backward pass runs, and gathers the updated parameters (ZeRO; the stages are described in dist/zero/zero_sharding.h).
//
// Gradients are summed, never averaged: the loss divides by the global number of tokens. With one rank no data moves.
//
//   for each micro-batch: backward, and as soon as a bucket is final: reducer.start(bucket, gradients of the bucket)
//                         reducer.finish()
//                         (where sharding().reduces_after(last) holds, else neither)
//   optimizer on owned(bucket), gradients from gradient()
//   reducer.gather_parameters(params)
#pragma once

#include <functional>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/zero/zero_sharding.h"
#include "kernels/base/buffer.h"

namespace tmamba {

struct GradReducerOptions {
  int64_t stage = 1;
  // For sharded gradients: their type and device, and y += x on them, ordered before later communication.
  DType dtype = DType::f32;
  Device device = Device::cpu;
  std::function<void(Tensor y, ConstTensor x)> add;
};

class GradReducer {
 public:
  // `zero`: the ranks that hold the same parameters (Mesh::zero). `tp`: the ranks over which the gradients of
  // replicated blocks are summed too. Both must outlive the reducer. Blocks are in elements of a flat buffer; all ranks
  // have the same buckets. Throws UserError for an unknown stage.
  GradReducer(Communicator& zero, Communicator& tp, std::vector<Bucket> buckets, GradReducerOptions options);
  // Without tensor parallelism.
  GradReducer(Communicator& zero, std::vector<Bucket> buckets, GradReducerOptions options);

  int buckets() const { return static_cast<int>(buckets_.size()); }
  const ZeroSharding& sharding() const { return sharding_; }
  // Elements of the flat buffer that the bucket spans, padding included.
  Slice bucket_range(int bucket) const { return buckets_[at(bucket)].range; }
  // The rows this rank owns and updates.
  const std::vector<OwnedRowBlock>& owned(int bucket) const { return buckets_[at(bucket)].owned; }
  // Elements in owned() of all buckets.
  int64_t owned_elements() const;

  // Starts the sum of a bucket. `grads` [bucket_range(bucket).count]: this rank's gradients of it; they must not be
  // touched before bucket_done(bucket) or finish(). All ranks start the same buckets in the same order.
  // When the sum is done, `grads` holds all sums where nothing is sharded; else those of owned rows and undefined
  // values elsewhere. Sharded gradients are added to what gradient() returns, and `grads` is undefined.
  void start(int bucket, Tensor grads);
  // Returns when the sum of this bucket is done.
  void bucket_done(int bucket);
  // Calls bucket_done() for all buckets. Throws Error unless every bucket was started exactly once since the last
  // finish().
  void finish();
  // Drops the sharded gradients of the last step.
  void begin_step();

  // The summed gradients of owned rows, [rows, row_elements]. `flat_grads` is the flat buffer whose buckets were given
  // to start(); it is not read where gradients are sharded.
  Tensor gradient(const Tensor& flat_grads, int bucket, const OwnedRowBlock& rows) const;

  // Sends every rank's owned rows of the flat buffer `params` to all ranks, and waits for them.
  void gather_parameters(Tensor params);

 private:
  struct BucketState {
    Bucket blocks;
    Slice range;
    std::vector<int64_t> counts;  // elements of each zero rank's slice of the range
    Slice slice;                  // that of this rank, in the flat buffer
    std::vector<OwnedRowBlock> owned;
    Work work;
    bool started = false;
    // For sharded gradients.
    int64_t packed_begin = 0;  // of `slice` in sums_
    bool has_sum = false;      // sums_ holds the sums of an earlier micro-batch
    bool staged = false;       // the sums in flight arrive in incoming_ and must be added
  };

  static size_t at(int bucket) { return static_cast<size_t>(bucket); }
  void sum_replicated(const BucketState& bucket, const Tensor& grads);
  Tensor packed(const Buffer& buffer, const BucketState& bucket) const;

  Communicator& zero_;
  Communicator* tp_;
  ZeroSharding sharding_;
  GradReducerOptions options_;
  std::vector<BucketState> buckets_;
  // Sharded gradients of all buckets, one after the other; and those of one micro-batch, not yet added.
  Buffer sums_, incoming_;
};

}  // namespace tmamba
