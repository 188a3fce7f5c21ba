// What only the host's communicator promises: sums in rank order to the bit, messages in chunks.
#include "dist/comm/mpi_communicator.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "dist/comm/reduce.h"
#include "tests/dist/comm/collective_tools.h"
#include "tests/dist/comm/mpi_main.h"

namespace tmamba {
namespace {

class HostCommunicators : public testing::Test {
 protected:
  Communicator& comm_ = test_comm();
  int rank_ = comm_.rank(), size_ = comm_.size();
};

TEST_F(HostCommunicators, SumsAreInRankOrderToTheBit) {
  for (uint64_t seed : {11, 12}) {
    for (int64_t n : {17, 20011}) {
      Vector v(n, DType::f32, [&](int64_t i) { return wild(seed, rank_, i); });
      comm_.all_reduce(v.x, ReduceOp::sum).wait();
      for (int64_t i = 0; i < n; ++i) {
        float expected = wild(seed, 0, i);
        for (int r = 1; r < size_; ++r) expected += wild(seed, r, i);
        ASSERT_EQ(std::bit_cast<uint32_t>(v.x.data<float>()[i]), std::bit_cast<uint32_t>(expected))
            << "seed " << seed << ", element " << i << " of " << n;
      }
    }
  }
}

TEST_F(HostCommunicators, MessagesInChunksOfAnySize) {
  const auto watchdog = std::make_shared<Watchdog>(rank_, test_world().hosts());
  for (int64_t chunk : {5, 64, 424, 100000}) {
    MPI_Comm raw = MPI_COMM_NULL;
    ASSERT_EQ(MPI_Comm_dup(MPI_COMM_WORLD, &raw), MPI_SUCCESS);
    MpiCommunicator chunked(raw, "chunked", std::make_shared<MpiProgress>(chunk, watchdog));
    Vector v(53, DType::f64, [&](int64_t i) { return static_cast<double>(rank_ + i); });
    Vector all(53 * size_, DType::f64);
    const std::vector<int64_t> counts(static_cast<size_t>(size_), 53);
    Work gather = chunked.all_gather(all.x, v.x, counts);
    Vector b(1000, DType::u8, [&](int64_t i) { return rank_ == size_ - 1 ? static_cast<double>(i % 256) : 0.0; });
    chunked.broadcast(b.x, size_ - 1).wait();
    gather.wait();
    for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(get(b.x, i), static_cast<double>(i % 256)) << "chunk " << chunk;
    for (int64_t i = 0; i < 53 * size_; ++i) ASSERT_EQ(get(all.x, i), static_cast<double>(i / 53 + i % 53));
  }
}

TEST(ReduceInOrder, RoundsBfloat16OnceToNearestEven) {
  // 1 + 2^-8 + 2^-8: in bfloat16 after each step it would stay 1.
  const bf16_t one = to_bf16(1), small = to_bf16(0x1p-8);
  bf16_t out{};
  const void* terms[] = {&one, &small, &small};
  reduce_in_order(ReduceOp::sum, DType::bf16, &out, terms, 1);
  EXPECT_EQ(from_bf16(out), 1 + 0x1p-7);
  const void* tie[] = {&one, &small};
  reduce_in_order(ReduceOp::sum, DType::bf16, &out, tie, 1);
  EXPECT_EQ(from_bf16(out), 1);
  const bf16_t infinity = to_bf16(INFINITY), minus = to_bf16(-INFINITY);
  const void* nan[] = {&infinity, &minus};
  reduce_in_order(ReduceOp::sum, DType::bf16, &out, nan, 1);
  EXPECT_TRUE(std::isnan(from_bf16(out)));
}

TEST(ReduceInOrder, IntegersWrap) {
  const int32_t largest = std::numeric_limits<int32_t>::max(), one = 1;
  int32_t out = 0;
  const void* terms[] = {&largest, &one};
  reduce_in_order(ReduceOp::sum, DType::i32, &out, terms, 1);
  EXPECT_EQ(out, std::numeric_limits<int32_t>::min());
}

}  // namespace
}  // namespace tmamba
