#include "dist/zero/grad_reducer.h"

#include <utility>

#include "kernels/base/trace_range.h"

namespace tmamba {

GradReducer::GradReducer(Communicator& zero, std::vector<Bucket> buckets, GradReducerOptions options)
    : zero_(zero), tp_(nullptr), stage_(zero.size() == 1 ? 0 : options.stage), options_(std::move(options)) {
  if (options_.stage < 0 || options_.stage > 2) {
    throw UserError(str("parallel.zero = ", options_.stage, ": there are stages 0, 1 and 2"));
  }
  check_buckets(buckets);
  int64_t packed_size = 0;
  for (Bucket& blocks : buckets) {
    BucketState& bucket = buckets_.emplace_back();
    bucket.blocks = std::move(blocks);
    bucket.range = range_of(bucket.blocks);
    bucket.own = bucket.range;
    if (stage_ > 0) {
      const std::vector<Slice> slices = cut_at_rows(bucket.blocks, zero_.size());
      for (const Slice& slice : slices) bucket.counts.push_back(slice.count);
      bucket.own = slices[at(zero_.rank())];
    }
    bucket.owned = rows_in(bucket.blocks, bucket.own);
    bucket.packed_begin = packed_size;
    packed_size += bucket.own.count;
  }
  if (stage_ == 2) {
    TM_CHECK(options_.add, "ZeRO stage 2 needs a function that adds gradients");
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
  if (stage_ == 0) {
    bucket.work = zero_.all_reduce(grads, ReduceOp::sum);
  } else if (stage_ == 1) {
    const Tensor own = grads.slice(0, bucket.own.begin - bucket.range.begin, bucket.own.count);
    bucket.work = zero_.reduce_scatter(own, grads, bucket.counts);
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
    const Tensor part = grads.slice(0, block.begin - bucket.range.begin, block.end() - block.begin);
    works.push_back(tp_->all_reduce(part, ReduceOp::sum));
  }
  for (Work& work : works) work.wait();
}

void GradReducer::bucket_done(int index) {
  BucketState& bucket = buckets_.at(at(index));
  bucket.work.wait();
  if (std::exchange(bucket.staged, false) && bucket.own.count > 0) {
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
  return all.slice(0, bucket.packed_begin, bucket.own.count);
}

Tensor GradReducer::gradient(const Tensor& flat_grads, int index, const OwnedRowBlock& rows) const {
  const BucketState& bucket = buckets_.at(at(index));
  const int64_t row_elements = bucket.blocks[at(rows.block)].row_elements;
  const Tensor elements =
      stage_ == 2 ? packed(sums_, bucket).slice(0, rows.elements.begin - bucket.own.begin, rows.elements.count)
                  : flat_grads.slice(0, rows.elements.begin, rows.elements.count);
  return elements.view({rows.rows, row_elements});
}

void GradReducer::gather_parameters(Tensor params) {
  const TraceRange trace("gather parameters");
  if (stage_ == 0) return;
  TM_CHECK(params.dims() == 1, "gather_parameters takes the flat buffer, not ", params.shape());
  for (BucketState& bucket : buckets_) {
    if (bucket.range.count == 0) continue;
    const Tensor whole = params.slice(0, bucket.range.begin, bucket.range.count);
    const Tensor own = params.slice(0, bucket.own.begin, bucket.own.count);
    bucket.work = zero_.all_gather(whole, own, bucket.counts);
  }
  for (BucketState& bucket : buckets_) bucket.work.wait();
}

}  // namespace tmamba
