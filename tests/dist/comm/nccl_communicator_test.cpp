// What only a communicator on device tensors has: its order with the compute stream, and sums on the device.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "dist/comm/reduce.h"
#include "dist/comm/reduce_device.h"
#include "tests/dist/comm/collective_tools.h"
#include "tests/dist/comm/mpi_main.h"

namespace tmamba {
namespace {

TEST(DeviceReduction, HasTheBitsOfTheHost) {
  constexpr int kTerms = 5;
  constexpr int64_t n = 70001, stride = n + 3;
  for (ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) {
    for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::u16, DType::u8}) {
      const bool real = dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16;
      const auto element = [&](int64_t i) -> double {
        if (!real) return static_cast<double>(i * 37 % 251);
        return i % 1009 == 0 ? NAN : wild(31, 0, i);
      };
      Vector terms(kTerms * stride, dtype, element), out(n, dtype);
      ASSERT_EQ(reduce_on_device(op, dtype, out.x.raw(), terms.x.raw(), stride, kTerms, n, cudaStreamLegacy),
                cudaSuccess);
      const std::vector<char> host = bits(terms.x);
      std::vector<const void*> inputs;
      for (int k = 0; k < kTerms; ++k)
        inputs.push_back(host.data() + k * stride * static_cast<int64_t>(size_of(dtype)));
      std::vector<char> expected(static_cast<size_t>(out.x.bytes()));
      reduce_in_order(op, dtype, expected.data(), inputs, n);
      if (real) {  // the bits of a NaN are not part of the promise
        const std::vector<double> got = values(out.x);
        const ConstTensor wanted(expected.data(), {n}, dtype);
        for (int64_t i = 0; i < n; ++i) {
          const double a = got[static_cast<size_t>(i)], b = get(wanted, i);
          ASSERT_TRUE(a == b || (std::isnan(a) && std::isnan(b)))
              << name_of(dtype) << " op " << static_cast<int>(op) << " at " << i << ": " << a << ", " << b;
        }
      } else {
        EXPECT_EQ(bits(out.x), expected) << name_of(dtype) << " op " << static_cast<int>(op);
      }
    }
  }
}

class DeviceCommunicators : public testing::Test {
 protected:
  Communicator& comm_ = test_comm();
  int rank_ = comm_.rank(), size_ = comm_.size();
};

// An operation comes after what was issued before it, and wait() puts it before what is issued after: no blocking copy,
// which the host would wait for, in between.
TEST_F(DeviceCommunicators, AreOrderedWithTheComputeStream) {
  constexpr int64_t n = int64_t{1} << 24;
  Vector source(n, DType::f32, [&](int64_t i) { return term(rank_, i); }), work(n, DType::f32), result(n, DType::f32);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  const auto copy = [&](const Tensor& to, const Tensor& from) {
    ASSERT_EQ(cudaMemcpyAsync(to.raw(), from.raw(), static_cast<size_t>(n) * 4, cudaMemcpyDeviceToDevice, stream),
              cudaSuccess);
  };
  for (int again = 0; again < 5; ++again) {
    copy(work.x, source.x);
    comm_.all_reduce(work.x, ReduceOp::sum).wait();
    copy(result.x, work.x);
    ASSERT_EQ(cudaMemsetAsync(work.x.raw(), 0xff, static_cast<size_t>(n) * 4, stream), cudaSuccess);
  }
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  cudaStreamDestroy(stream);
  const std::vector<double> got = values(result.x);
  for (int64_t i = 0; i < n; i += 1013) {
    double expected = 0;
    for (int r = 0; r < size_; ++r) expected += term(r, i);
    ASSERT_EQ(got[static_cast<size_t>(i)], expected) << i;
  }
}

// Sums in NCCL's order agree with sums in rank order to rounding.
TEST_F(DeviceCommunicators, SumsAreThoseOfTheHostToRounding) {
  constexpr int64_t n = 100003;
  const std::vector<int64_t> uneven = uneven_counts(size_);
  Vector v(n, DType::f32, [&](int64_t i) { return wild(41, rank_, i); });
  comm_.all_reduce(v.x, ReduceOp::sum).wait();
  Vector in(total(uneven), DType::f32, [&](int64_t i) { return wild(42, rank_, i); });
  const int64_t begin = begin_of(uneven, rank_);
  Vector out(uneven[static_cast<size_t>(rank_)], DType::f32);
  comm_.reduce_scatter(out.x, in.x, uneven).wait();
  const auto expect_sum = [&](double got, uint64_t seed, int64_t i) {
    double sum = 0, size = 0;
    for (int r = 0; r < size_; ++r) sum += wild(seed, r, i), size += std::abs(wild(seed, r, i));
    ASSERT_NEAR(got, sum, 1e-6 * size) << "seed " << seed << " at " << i;
  };
  const std::vector<double> sums = values(v.x), piece = values(out.x);
  for (int64_t i = 0; i < n; ++i) expect_sum(sums[static_cast<size_t>(i)], 41, i);
  for (int64_t i = 0; i < out.x.numel(); ++i) expect_sum(piece[static_cast<size_t>(i)], 42, begin + i);
}

// Communicators come and go; nothing of one is left in the way of another.
TEST_F(DeviceCommunicators, ManyInARow) {
  for (int k = 0; k < 4; ++k) {
    const auto part = comm_.split(0, k % 2 == 0 ? rank_ : -rank_, "part");
    const auto other = part->split(rank_ % 2, rank_, "half");
    Vector a(300, DType::bf16, [&](int64_t i) { return term(rank_, i); });
    Vector b(300, DType::i32, [&](int64_t) { return 1; });
    Work first = part->all_reduce(a.x, ReduceOp::max), second = other->all_reduce(b.x, ReduceOp::sum);
    first.wait(), second.wait();
    double largest = 0;
    for (int r = 0; r < size_; ++r) largest = std::max(largest, term(r, 7));
    EXPECT_EQ(values(a.x)[7], largest);
    EXPECT_EQ(values(b.x)[0], other->size());
  }
}

}  // namespace
}  // namespace tmamba
