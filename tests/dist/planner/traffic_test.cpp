// The closed forms of a step's traffic against what communicators count while the same is exchanged.
#include "dist/planner/traffic.h"

#include <gtest/gtest.h>

#include <vector>

#include "dist/sequence/exchange.h"
#include "dist/zero/grad_reducer.h"
#include "tests/dist/comm/mpi_main.h"
#include "tests/dist/planner/plan_cases.h"

namespace tmamba {
namespace {

void expect_equal(const TrafficCounter& counted, const TrafficCounter& planned) {
  EXPECT_EQ(counted.calls, planned.calls);
  EXPECT_EQ(counted.bytes, planned.bytes);
}

TEST(Traffic, AddsSubtractsAndRepeats) {
  TrafficCounter a = all_reduce_traffic(1000, 4);
  EXPECT_EQ(a.calls[0], 1);
  EXPECT_EQ(a.bytes[0], 1500);
  a += 2 * a;
  EXPECT_EQ(a.calls[0], 3);
  EXPECT_EQ((a - all_reduce_traffic(1000, 4)).bytes[0], 3000);
}

// Pieces of different sizes, that of rank 0 empty: each rank counts what it must receive, not the average.
TEST(Traffic, OfUnevenPieces) {
  Communicator& world = test_world().comm();
  const auto comm = world.split(0, world.rank(), "uneven");
  const int64_t ranks = comm->size(), own = 7 * comm->rank(), all = 7 * ranks * (ranks - 1) / 2;
  std::vector<int64_t> counts;
  for (int64_t r = 0; r < ranks; ++r) counts.push_back(7 * r);
  Buffer whole({all + 1}, DType::f64), piece({own + 1}, DType::f64);
  const Tensor whole_all = whole.tensor({all}, DType::f64), piece_own = piece.tensor({own}, DType::f64);
  comm->reduce_scatter(piece_own, whole_all, counts).wait();
  comm->all_gather(whole_all, piece_own, counts).wait();
  const auto& bytes = comm->traffic().bytes;
  EXPECT_EQ(bytes[static_cast<size_t>(Collective::reduce_scatter)], own * 8 * (ranks - 1));
  EXPECT_EQ(bytes[static_cast<size_t>(Collective::all_gather)], (all - own) * 8);
}

// Buckets with rows that do not divide, padding, and blocks that all tensor ranks have.
std::vector<Bucket> buckets() {
  return {{{.begin = 0, .rows = 13, .row_elements = 5}},
          {{.begin = 70, .rows = 1, .row_elements = 7, .replicated_over_tp = true},
           {.begin = 80, .rows = 2, .row_elements = 11},
           {.begin = 104, .rows = 9, .row_elements = 1, .replicated_over_tp = true}}};
}

TEST(Traffic, OfGradientsAndParameters) {
  Communicator& comm = test_world().comm();
  const int ranks = comm.size();
  for (bool tensor_parallel : {false, true}) {
    for (int zero : {0, 1, 2}) {
      SCOPED_TRACE(str("zero ", zero, tensor_parallel ? ", tensor ranks" : ", zero ranks"));
      // All ranks along one axis; along the other each is alone.
      const auto along = comm.split(0, comm.rank(), "along"), alone = comm.split(comm.rank(), 0, "alone");
      Communicator &zero_axis = tensor_parallel ? *alone : *along, &tp_axis = tensor_parallel ? *along : *alone;
      PlanDims dims = small_dims(1, 1, 16, {8});
      dims.zero = zero, dims.state_bytes = 8, dims.activation_bytes = 4;
      (tensor_parallel ? dims.tp : dims.dp) = ranks;
      dims.global_batch = 6 * dims.batch * dims.dp;
      EXPECT_EQ(reductions(dims), zero == 2 && !tensor_parallel && ranks > 1 ? 6 : 1);
      GradReducer reducer(zero_axis, tp_axis, buckets(),
                          {.stage = zero, .dtype = DType::f64, .add = [](Tensor, ConstTensor) {}});
      Buffer grads({120}, DType::f64), params({120}, DType::f32);
      const Tensor grads_flat = grads.tensor({120}, DType::f64);
      for (int b = 0; b < reducer.buckets(); ++b) {
        const Slice range = reducer.bucket_range(b);
        reducer.start(b, grads_flat.slice(0, range.begin, range.count));
      }
      reducer.finish();
      const GradientTraffic planned = reduction_traffic(dims, buckets(), zero_axis.rank());
      expect_equal(zero_axis.traffic(), planned.zero);
      expect_equal(tp_axis.traffic(), planned.tp);
      zero_axis.reset_traffic();
      reducer.gather_parameters(params.tensor({120}, DType::f32));
      expect_equal(zero_axis.traffic(), parameter_traffic(dims, buckets(), zero_axis.rank()));
    }
  }
}

// The layers' exchanges in the order the model makes them; how many there are is the model's, held by the program's
// test (tests/launch/train/profile_test.cpp).
TEST(Traffic, OfRowsThatDoNotDivide) {
  Communicator& world = test_world().comm();
  const auto comm = world.split(0, world.rank(), "tp");
  constexpr int64_t kRows = 13, kChunk = 5;
  PlanDims dims = small_dims(1, 1, 16, {8, 0});
  dims.tp = comm->size(), dims.activation_bytes = 8, dims.state_bytes = 8;
  TensorExchange exchange(*comm, kRows, {});
  Buffer whole({kRows, dims.dim}, DType::f64), maximum({kChunk}, DType::f64);
  const Tensor rows = whole.tensor({kRows, dims.dim}, DType::f64),
               mine = rows.slice(0, exchange.rows().begin, exchange.rows().size());
  for (int64_t i = 0; i < 2 * (2 * dims.layers() + 1); ++i)
    exchange.scatter_sum(mine, rows), exchange.gather_rows(rows, mine);
  for (int64_t begin = 0; begin < kRows; begin += kChunk) {
    const Tensor chunk = maximum.tensor({std::min(kChunk, kRows - begin)}, DType::f64);
    exchange.all_max(chunk), exchange.all_sum(chunk), exchange.all_sum(chunk);
  }
  expect_equal(comm->traffic(), tensor_traffic(dims, kRows, kChunk, comm->rank()));
}

}  // namespace
}  // namespace tmamba
