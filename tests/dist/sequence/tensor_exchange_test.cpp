// Exchanges among tensor-parallel ranks against what every rank computes alone.
#include <gtest/gtest.h>

#include <cmath>

#include "dist/comm/shard.h"
#include "kernels/base/rng.h"
#include "tests/dist/comm/mpi_main.h"
#include "tests/dist/sequence/exchange_tools.h"

namespace tmamba {
namespace {

class TensorExchanges : public testing::TestWithParam<int64_t> {
 protected:
  static constexpr int64_t C = 5;
  static double term(int rank, int64_t row, int64_t c) {
    const Philox random(7, static_cast<uint64_t>(rank));
    return std::ldexp(random.normal(static_cast<uint64_t>(row * C + c)), 10 * rank % 23);
  }
  Tensor rows_of(std::vector<double>& data, const TokenRange& rows) const {
    return Tensor(data.data(), {GetParam(), C}, DType::f64).slice(0, rows.begin, rows.size());
  }

  Recorder comm_{test_world().comm()};
  TensorExchange exchange_{comm_, GetParam(), host_ops()};
  const int64_t N = GetParam();
};

TEST_P(TensorExchanges, RowsCoverTheWholeOnce) {
  int64_t next = 0;
  for (int r = 0; r < exchange_.size(); ++r) {
    const Slice slice = shard_of(N, r, exchange_.size());
    EXPECT_EQ(slice.begin, next);
    if (r == exchange_.rank()) {
      EXPECT_EQ(exchange_.rows(), (TokenRange{slice.begin, slice.end()}));
    }
    next = slice.end();
  }
  EXPECT_EQ(next, N);
}

TEST_P(TensorExchanges, GatherRows) {
  for (bool in_place : {false, true}) {
    std::vector<double> all(static_cast<size_t>(N * C), kNaN), own(static_cast<size_t>(N * C), kNaN);
    const TokenRange rows = exchange_.rows();
    const Tensor mine = rows_of(in_place ? all : own, rows);
    for_each_index(mine, [&](const Index& i) { at(mine, i) = term(0, rows.begin + i[0], i[1]); });
    const Tensor whole(all.data(), {N, C}, DType::f64);
    exchange_.gather_rows(whole, mine);
    for_each_index(whole, [&](const Index& i) { ASSERT_EQ(at(whole, i), term(0, i[0], i[1])) << i[0]; });
  }
  EXPECT_EQ(comm_.calls.size(), exchange_.size() == 1 ? 0u : 2u);
}

TEST_P(TensorExchanges, ScatterSumAddsInRankOrder) {
  for (bool in_place : {false, true}) {
    std::vector<double> partial(static_cast<size_t>(N * C)), own(static_cast<size_t>(N * C), kNaN);
    const TokenRange rows = exchange_.rows();
    const Tensor mine = rows_of(in_place ? partial : own, rows), whole(partial.data(), {N, C}, DType::f64);
    for_each_index(whole, [&](const Index& i) { at(whole, i) = term(exchange_.rank(), i[0], i[1]); });
    exchange_.scatter_sum(mine, whole);
    for_each_index(mine, [&](const Index& i) {
      double sum = term(0, rows.begin + i[0], i[1]);
      for (int r = 1; r < exchange_.size(); ++r) sum += term(r, rows.begin + i[0], i[1]);
      ASSERT_EQ(bits(at(mine, i)), bits(sum));
    });
  }
  EXPECT_EQ(comm_.calls.size(), exchange_.size() == 1 ? 0u : 2u);
}

TEST_P(TensorExchanges, SumAndMaxOverRanks) {
  std::vector<double> sum(static_cast<size_t>(N)), max(static_cast<size_t>(N));
  for (int64_t n = 0; n < N; ++n) {
    sum[static_cast<size_t>(n)] = max[static_cast<size_t>(n)] = term(exchange_.rank(), n, 0);
  }
  exchange_.all_sum(Tensor(sum.data(), {N}, DType::f64));
  exchange_.all_max(Tensor(max.data(), {N}, DType::f64));
  for (int64_t n = 0; n < N; ++n) {
    double expected_sum = term(0, n, 0), expected_max = term(0, n, 0);
    for (int r = 1; r < exchange_.size(); ++r) {
      expected_sum += term(r, n, 0);
      expected_max = std::max(expected_max, term(r, n, 0));
    }
    EXPECT_EQ(sum[static_cast<size_t>(n)], expected_sum);
    EXPECT_EQ(max[static_cast<size_t>(n)], expected_max);
  }
  EXPECT_EQ(comm_.calls.size(), exchange_.size() == 1 ? 0u : 2u);
}

TEST_P(TensorExchanges, ViewsWithoutMemoryAreLeftAlone) {
  const Tensor whole(nullptr, {N, C}, DType::f64), mine(nullptr, {exchange_.rows().size(), C}, DType::f64);
  exchange_.gather_rows(whole, mine);
  exchange_.scatter_sum(mine, whole);
  exchange_.all_sum(whole);
  exchange_.all_max(whole);
  EXPECT_TRUE(comm_.calls.empty());
}

TEST_P(TensorExchanges, WrongRowsAreNamed) {
  const Tensor whole(nullptr, {N + 1, C}, DType::f64), mine(nullptr, {exchange_.rows().size() + 1, C}, DType::f64);
  EXPECT_NE(error_of([&] { exchange_.gather_rows(whole, mine); }).find(str("expected ", N, " rows")),
            std::string::npos);
  const Tensor right(nullptr, {N, C}, DType::f64);
  EXPECT_NE(error_of([&] { exchange_.scatter_sum(mine, right); }).find("this rank's rows are"), std::string::npos);
}

// Fewer rows than ranks, as many as 8 divides, and others.
INSTANTIATE_TEST_SUITE_P(Rows, TensorExchanges, testing::Values(1, 3, 16, 37));

}  // namespace
}  // namespace tmamba
