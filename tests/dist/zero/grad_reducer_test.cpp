// Gradients summed over ranks equal sums computed on one rank; gathered parameters equal those of their owners.
#include "dist/zero/grad_reducer.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "dist/world/mesh.h"
#include "kernels/base/rng.h"
#include "tests/dist/comm/mpi_main.h"

namespace tmamba {
namespace {

constexpr int64_t kFlat = 3000;

// Two layers of a matrix, a vector and a matrix with few wide rows; a bucket without parameters; and one with a single
// row, so that most ranks own nothing of it.
std::vector<Bucket> example_buckets() {
  return {{{.begin = 0, .rows = 1, .row_elements = 100}},
          {{.begin = 128, .rows = 37, .row_elements = 20},
           {.begin = 896, .rows = 61, .row_elements = 1, .replicated_over_tp = true},
           {.begin = 960, .rows = 3, .row_elements = 111}},
          {},
          {{.begin = 1344, .rows = 19, .row_elements = 40},
           {.begin = 2112, .rows = 33, .row_elements = 1, .replicated_over_tp = true},
           {.begin = 2176, .rows = 5, .row_elements = 160}}};
}

// The gradient of element i on one rank in one micro-batch. Magnitudes differ widely, so that a sum in another order
// has other bits.
float gradient_of(int rank, int micro_batch, int64_t i) {
  const Philox random(41, static_cast<uint64_t>(100 * micro_batch + rank));
  const auto counter = static_cast<uint64_t>(i);
  return static_cast<float>(random.normal(counter) * std::pow(10.0, 5 * random.uniform(counter + (1 << 20))));
}

void add(Tensor y, ConstTensor x) {
  for (int64_t i = 0; i < x.numel(); ++i) y.data<float>()[i] += x.data<float>()[i];
}

class Reducer : public testing::TestWithParam<int> {
 protected:
  void fill(int micro_batch) {
    for (int64_t i = 0; i < kFlat; ++i) grads_.data<float>()[i] = gradient_of(rank_, micro_batch, i);
  }
  Tensor bucket_of(const GradReducer& reducer, int bucket) const {
    const Slice range = reducer.bucket_range(bucket);
    return grads_.slice(0, range.begin, range.count);
  }

  Communicator& comm_ = test_world().comm();
  int rank_ = comm_.rank(), size_ = comm_.size();
  Buffer buffer_{{kFlat}, DType::f32};
  Tensor grads_ = buffer_.tensor({kFlat}, DType::f32);
};

TEST_P(Reducer, SumsAreThoseOfOneRank) {
  GradReducer reducer(comm_, example_buckets(),
                      {.stage = GetParam(), .dtype = DType::f32, .device = Device::cpu, .add = add});
  for (int step = 0; step < 2; ++step) {
    reducer.begin_step();
    fill(step);
    for (int bucket = reducer.buckets() - 1; bucket >= 0; --bucket) reducer.start(bucket, bucket_of(reducer, bucket));
    reducer.finish();
    for (int bucket = 0; bucket < reducer.buckets(); ++bucket) {
      for (const OwnedRowBlock& rows : reducer.owned(bucket)) {
        const Tensor sum = reducer.gradient(grads_, bucket, rows);
        ASSERT_EQ(sum.size(0), rows.rows);
        for (int64_t i = 0; i < rows.elements.count; ++i) {
          float expected = gradient_of(0, step, rows.elements.begin + i);
          for (int r = 1; r < size_; ++r) expected += gradient_of(r, step, rows.elements.begin + i);
          ASSERT_EQ(std::bit_cast<uint32_t>(sum.data<float>()[i]), std::bit_cast<uint32_t>(expected))
              << "step " << step << " bucket " << bucket << " element " << rows.elements.begin + i;
        }
      }
    }
  }
}

TEST_P(Reducer, OwnershipCoversEveryRowOnce) {
  const auto buckets = example_buckets();
  GradReducer reducer(comm_, buckets, {.stage = GetParam(), .dtype = DType::f32, .device = Device::cpu, .add = add});
  std::vector<int32_t> owners(kFlat);
  for (int bucket = 0; bucket < reducer.buckets(); ++bucket) {
    for (const OwnedRowBlock& rows : reducer.owned(bucket)) {
      for (int64_t i = rows.elements.begin; i < rows.elements.end(); ++i) ++owners[static_cast<size_t>(i)];
    }
  }
  int64_t owned = reducer.owned_elements();
  comm_.all_reduce(Tensor(owners.data(), {kFlat}, DType::i32), ReduceOp::sum).wait();
  comm_.all_reduce(Tensor(&owned, {1}, DType::i64), ReduceOp::sum).wait();
  std::vector<int32_t> expected(kFlat);
  int64_t parameters = 0;
  for (const Bucket& bucket : buckets) {
    for (const RowBlock& block : bucket) {
      for (int64_t i = block.begin; i < block.end(); ++i)
        expected[static_cast<size_t>(i)] = GetParam() == 0 ? size_ : 1;
      parameters += block.end() - block.begin;
    }
  }
  EXPECT_EQ(owners, expected);
  EXPECT_EQ(owned, GetParam() == 0 ? parameters * size_ : parameters);
}

TEST_P(Reducer, GatheredParametersAreThoseOfTheirOwners) {
  GradReducer reducer(comm_, example_buckets(),
                      {.stage = GetParam(), .dtype = DType::f32, .device = Device::cpu, .add = add});
  // bfloat16 whose bits are the element's index where this rank is the owner, and all ones elsewhere.
  Buffer buffer({kFlat}, DType::bf16);
  const Tensor params = buffer.tensor({kFlat}, DType::bf16);
  for (int64_t i = 0; i < kFlat; ++i) params.data<bf16_t>()[i].bits = 0xFFFF;
  for (int bucket = 0; bucket < reducer.buckets(); ++bucket) {
    for (const OwnedRowBlock& rows : reducer.owned(bucket)) {
      for (int64_t i = rows.elements.begin; i < rows.elements.end(); ++i) {
        params.data<bf16_t>()[i].bits = static_cast<uint16_t>(i);
      }
    }
  }
  reducer.gather_parameters(params);
  for (const Bucket& bucket : example_buckets()) {
    for (const RowBlock& block : bucket) {
      for (int64_t i = block.begin; i < block.end(); ++i) ASSERT_EQ(params.data<bf16_t>()[i].bits, i);
    }
  }
}

TEST_P(Reducer, BucketsMustBeStartedOnceEach) {
  GradReducer reducer(comm_, example_buckets(),
                      {.stage = GetParam(), .dtype = DType::f32, .device = Device::cpu, .add = add});
  reducer.start(0, bucket_of(reducer, 0));
  EXPECT_THROW(reducer.start(0, bucket_of(reducer, 0)), Error);
  EXPECT_THROW(reducer.start(1, bucket_of(reducer, 0)), Error);  // of another size
  EXPECT_THROW(reducer.finish(), Error);
}

INSTANTIATE_TEST_SUITE_P(Stages, Reducer, testing::Values(0, 1, 2));

using StageTwo = Reducer;

TEST_F(StageTwo, MicroBatchesAddUpInOrder) {
  GradReducer reducer(comm_, example_buckets(), {.stage = 2, .dtype = DType::f32, .device = Device::cpu, .add = add});
  if (size_ == 1) {
    // One rank has the sums in its own gradients: nothing is sharded.
    EXPECT_FALSE(reducer.sharding().shards_gradients());
    return;
  }
  // All buckets use the same memory for their gradients in turn.
  Buffer shared({1700}, DType::f32);
  for (int step = 0; step < 2; ++step) {
    reducer.begin_step();
    for (int micro_batch = 0; micro_batch < 3; ++micro_batch) {
      for (int bucket = 0; bucket < reducer.buckets(); ++bucket) {
        const Slice range = reducer.bucket_range(bucket);
        const Tensor grads = shared.tensor({range.count}, DType::f32);
        for (int64_t i = 0; i < range.count; ++i) {
          grads.data<float>()[i] = gradient_of(rank_, 3 * step + micro_batch, range.begin + i);
        }
        reducer.start(bucket, grads);
        reducer.bucket_done(bucket);
      }
      reducer.finish();
    }
    for (int bucket = 0; bucket < reducer.buckets(); ++bucket) {
      for (const OwnedRowBlock& rows : reducer.owned(bucket)) {
        const Tensor sum = reducer.gradient({}, bucket, rows);
        for (int64_t i = 0; i < rows.elements.count; ++i) {
          float expected = 0;
          for (int micro_batch = 0; micro_batch < 3; ++micro_batch) {
            float over_ranks = gradient_of(0, 3 * step + micro_batch, rows.elements.begin + i);
            for (int r = 1; r < size_; ++r) {
              over_ranks += gradient_of(r, 3 * step + micro_batch, rows.elements.begin + i);
            }
            expected = micro_batch == 0 ? over_ranks : expected + over_ranks;
          }
          ASSERT_EQ(sum.data<float>()[i], expected) << "step " << step << " element " << rows.elements.begin + i;
        }
      }
    }
  }
}

TEST_F(StageTwo, ReplicatedBlocksAreSummedOverTpToo) {
  const int tp = size_ % 2 == 0 ? 2 : 1;  // an odd number of ranks cannot be halved
  Mesh mesh(comm_, mesh_shape(tp, 1, 0, size_));
  for (int stage : {0, 1, 2}) {
    GradReducer reducer(mesh.zero(), mesh.tp(), example_buckets(),
                        {.stage = stage, .dtype = DType::f32, .device = Device::cpu, .add = add});
    for (int64_t i = 0; i < kFlat; ++i) grads_.data<float>()[i] = static_cast<float>(rank_ + 1);
    for (int bucket = 0; bucket < reducer.buckets(); ++bucket) reducer.start(bucket, bucket_of(reducer, bucket));
    reducer.finish();
    float all_ranks = 0, same_tp = 0;
    for (int r = 0; r < size_; ++r) {
      all_ranks += static_cast<float>(r + 1);
      if (r % tp == rank_ % tp) same_tp += static_cast<float>(r + 1);
    }
    const auto buckets = example_buckets();
    for (int bucket = 0; bucket < reducer.buckets(); ++bucket) {
      for (const OwnedRowBlock& rows : reducer.owned(bucket)) {
        const bool replicated =
            buckets[static_cast<size_t>(bucket)][static_cast<size_t>(rows.block)].replicated_over_tp;
        const Tensor sum = reducer.gradient(grads_, bucket, rows);
        for (int64_t i = 0; i < sum.numel(); ++i) ASSERT_EQ(sum.data<float>()[i], replicated ? all_ranks : same_tp);
      }
    }
  }
}

TEST_F(StageTwo, TrafficIsThatOfTheStage) {
  // Bytes received per step: stage 0 two passes over the gradients; stage 1 the summands of the owned gradients from
  // every other rank, and all parameters that are not owned.
  const auto comm = comm_.split(0, rank_, "zero");
  for (int stage : {0, 1}) {
    GradReducer reducer(*comm, example_buckets(),
                        {.stage = stage, .dtype = DType::f32, .device = Device::cpu, .add = {}});
    comm->reset_traffic();
    for (int bucket = 0; bucket < reducer.buckets(); ++bucket) reducer.start(bucket, bucket_of(reducer, bucket));
    reducer.finish();
    reducer.gather_parameters(grads_);
    int64_t doubled = 0, summands = 0, others = 0;
    for (int bucket = 0; bucket < reducer.buckets(); ++bucket) {
      const int64_t all = reducer.bucket_range(bucket).count * 4;
      const std::vector<Slice> slices = split_bucket(example_buckets()[static_cast<size_t>(bucket)], size_);
      const int64_t owned = slices[static_cast<size_t>(rank_)].count * 4;
      doubled += 2 * all * (size_ - 1) / size_, summands += owned * (size_ - 1), others += all - owned;
    }
    auto bytes = [&](Collective op) { return comm->traffic().bytes[static_cast<size_t>(op)]; };
    EXPECT_EQ(bytes(Collective::all_reduce), stage == 0 ? doubled : 0);
    EXPECT_EQ(bytes(Collective::reduce_scatter), stage == 1 && size_ > 1 ? summands : 0);
    EXPECT_EQ(bytes(Collective::all_gather), stage == 1 && size_ > 1 ? others : 0);
  }
}

TEST_F(StageTwo, RefusesAnUnknownStage) {
  EXPECT_THROW(
      GradReducer(comm_, example_buckets(), {.stage = 3, .dtype = DType::f32, .device = Device::cpu, .add = {}}),
      UserError);
}

}  // namespace
}  // namespace tmamba
