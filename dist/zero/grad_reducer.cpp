#include "dist/zero/grad_reducer.h"

#include <utility>

#include "kernels/base/trace_range.h"

namespace tmamba {

GradReducer::GradReducer(Communicator& zero, std::vector<Bucket> buckets, GradReducerOptions options)
    : zero_(zero), tp_(nullptr), sharding_(options.stage, zero.size()), options_(std::move(options)) {
  check_buckets(buckets);
  int64_t packed_size = 0;
  for (Bucket& blocks : buckets) {
    BucketState& bucket = buckets_.emplace_back();
    bucket.blocks = std::move(blocks);
    bucket.range = range_of(bucket.blocks);
    for (const Slice& slice : sharding_.slices(bucket.blocks)) bucket.counts.push_back(slice.count);
    bucket.slice = sharding_.slice(bucket.blocks, zero_.rank());
    bucket.owned = sharding_.owned(bucket.blocks, zero_.rank());
    bucket.packed_begin = packed_size;
    packed_size += bucket.slice.count;
  }
  if (sharding_.shards_gradients()) {
    TM_CHECK(options_.add, "GradReducer: sharded gradients need a function that adds gradients");
    sums_ = Buffer({packed_size}, options_.dtype, options_.device);
    incoming_ = Buffer({packed_size}, options_.dtype, options_.device);
  }
}

GradReducer::GradReducer(Communicator& zero, Communicator& tp, std::vector<Bucket> buckets, GradReducerOptions options)
    : GradReducer(zero, std::move(buckets), std::move(options)) {
  tp_ = &tp;
}

int64_t GradReducer::owned_elements() const {
  int64_t n = 0;
  for (const BucketState& bucket : buckets_) {
    for (const OwnedRowBlock& rows : bucket.owned) n += rows.elements.count;
  }
  return n;
}

void GradReducer::start(int index, Tensor grads) {
  const TraceRange trace("start gradient reduction", index);
  BucketState& bucket = buckets_.at(at(index));
  TM_CHECK(!bucket.started, "bucket ", index, " was started twice before finish()");
  TM_CHECK(grads.numel() == bucket.range.count && grads.contiguous(), "bucket ", index, " has ", bucket.range.count,
           " elements, its gradients are ", grads.shape());
  bucket.started = true;
  if (bucket.range.count == 0) return;
  grads = grads.view({bucket.range.count});
  if (tp_ != nullptr && tp_->size() > 1) sum_replicated(bucket, grads);
  if (zero_.size() == 1) return;
  if (!sharding_.shards_optimizer()) {
    bucket.work = zero_.all_reduce(grads, ReduceOp::sum);
  } else if (!sharding_.shards_gradients()) {
    const Tensor owned = grads.slice(0, bucket.slice.begin - bucket.range.begin, bucket.slice.count);
    bucket.work = zero_.reduce_scatter(owned, grads, bucket.counts);
  } else {
    bucket.staged = bucket.has_sum;
    bucket.work = zero_.reduce_scatter(packed(bucket.has_sum ? incoming_ : sums_, bucket), grads, bucket.counts);
    bucket.has_sum = true;
  }
}

void GradReducer::sum_replicated(const BucketState& bucket, const Tensor& grads) {
  std::vector<Work> works;
  for (const RowBlock& block : bucket.blocks) {
    if (!block.replicated_over_tp) continue;
    const Tensor gradient = grads.slice(0, block.begin - bucket.range.begin, block.end() - block.begin);
    works.push_back(tp_->all_reduce(gradient, ReduceOp::sum));
  }
  for (Work& work : works) work.wait();
}

void GradReducer::bucket_done(int index) {
  BucketState& bucket = buckets_.at(at(index));
  bucket.work.wait();
  if (std::exchange(bucket.staged, false) && bucket.slice.count > 0) {
    options_.add(packed(sums_, bucket), packed(incoming_, bucket));
  }
}

void GradReducer::finish() {
  const TraceRange trace("finish gradient reduction");
  for (int i = 0; i < buckets(); ++i) {
    TM_CHECK(buckets_[at(i)].started, "bucket ", i, " of ", buckets(), " was not started before finish()");
    bucket_done(i);
  }
  for (BucketState& bucket : buckets_) bucket.started = false;
}

void GradReducer::begin_step() {
  for (BucketState& bucket : buckets_) bucket.has_sum = false;
}

Tensor GradReducer::packed(const Buffer& buffer, const BucketState& bucket) const {
  const auto all = buffer.tensor({static_cast<int64_t>(buffer.bytes() / size_of(options_.dtype))}, options_.dtype);
  return all.slice(0, bucket.packed_begin, bucket.slice.count);
}

Tensor GradReducer::gradient(const Tensor& flat_grads, int index, const OwnedRowBlock& rows) const {
  const BucketState& bucket = buckets_.at(at(index));
  const int64_t row_elements = bucket.blocks[at(rows.block)].row_elements;
  const Tensor elements =
      sharding_.shards_gradients()
          ? packed(sums_, bucket).slice(0, rows.elements.begin - bucket.slice.begin, rows.elements.count)
          : flat_grads.slice(0, rows.elements.begin, rows.elements.count);
  return elements.view({rows.rows, row_elements});
}

void GradReducer::gather_parameters(Tensor params) {
  const TraceRange trace("gather parameters");
  if (!sharding_.shards_optimizer()) return;
  TM_CHECK(params.dims() == 1, "gather_parameters takes the flat buffer, not ", params.shape());
  for (BucketState& bucket : buckets_) {
    if (bucket.range.count == 0) continue;
    const Tensor whole = params.slice(0, bucket.range.begin, bucket.range.count);
    const Tensor owned = params.slice(0, bucket.slice.begin, bucket.slice.count);
    bucket.work = zero_.all_gather(whole, owned, bucket.counts);
  }
  for (BucketState& bucket : buckets_) bucket.work.wait();
}

}  // namespace tmamba
