// Every collective with answers known exactly, on any number of ranks: on host tensors, and on device tensors over
// NCCL.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/dist/comm/collective_tools.h"
#include "tests/dist/comm/mpi_main.h"

namespace tmamba {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

class Collectives : public testing::TestWithParam<DType> {
 protected:
  Communicator& comm_ = test_comm();
  int rank_ = comm_.rank(), size_ = comm_.size();
};

TEST_P(Collectives, AllReduceSum) {
  for (int64_t n : {0, 1, 5, 2047, 40000}) {
    Vector v(n, GetParam(), [&](int64_t i) { return term(rank_, i); });
    comm_.all_reduce(v.x, ReduceOp::sum).wait();
    const std::vector<double> got = values(v.x);
    for (int64_t i = 0; i < n; ++i) {
      double expected = 0;
      for (int r = 0; r < size_; ++r) expected += term(r, i);
      ASSERT_EQ(got[at(i)], expected) << "element " << i << " of " << n;
    }
  }
}

TEST_P(Collectives, AllReduceMaxAndMin) {
  for (int64_t n : {3, 30000}) {
    Vector v(n, GetParam(), [&](int64_t i) { return term(rank_, i); });
    Vector w(n, GetParam(), [&](int64_t i) { return term(rank_, i); });
    Work max = comm_.all_reduce(v.x, ReduceOp::max);
    comm_.all_reduce(w.x, ReduceOp::min).wait();
    max.wait();
    const std::vector<double> maxima = values(v.x), minima = values(w.x);
    for (int64_t i = 0; i < n; ++i) {
      double largest = 0, smallest = 8;
      for (int r = 0; r < size_; ++r)
        largest = std::max(largest, term(r, i)), smallest = std::min(smallest, term(r, i));
      ASSERT_EQ(maxima[at(i)], largest) << i;
      ASSERT_EQ(minima[at(i)], smallest) << i;
    }
  }
}

TEST_P(Collectives, ReduceScatter) {
  for (const auto& counts : {uneven_counts(size_), even_counts(size_, 1003)}) {
    const int64_t mine = counts[at(rank_)], begin = begin_of(counts, rank_);
    for (bool in_place : {false, true}) {
      Vector in(total(counts), GetParam(), [&](int64_t i) { return term(rank_, i); });
      Vector separate(mine, GetParam());
      const Tensor out = in_place ? in.x.slice(0, begin, mine) : separate.x;
      comm_.reduce_scatter(out, in.x, counts).wait();
      const std::vector<double> got = values(out);
      for (int64_t i = 0; i < mine; ++i) {
        double expected = 0;
        for (int r = 0; r < size_; ++r) expected += term(r, begin + i);
        ASSERT_EQ(got[at(i)], expected) << i << " of " << mine << ", in place " << in_place;
      }
    }
  }
}

TEST_P(Collectives, AllGather) {
  for (const auto& counts : {uneven_counts(size_), even_counts(size_, 1003)}) {
    const int64_t mine = counts[at(rank_)], begin = begin_of(counts, rank_);
    for (bool in_place : {false, true}) {
      // Outside this rank's piece `out` holds what must be written over.
      Vector out(total(counts), GetParam(),
                 [&](int64_t i) { return in_place && i >= begin && i < begin + mine ? term(rank_, i - begin) : 99.0; });
      Vector separate(mine, GetParam(), [&](int64_t i) { return term(rank_, i); });
      comm_.all_gather(out.x, in_place ? out.x.slice(0, begin, mine) : separate.x, counts).wait();
      const std::vector<double> got = values(out.x);
      size_t position = 0;
      for (int r = 0; r < size_; ++r) {
        for (int64_t i = 0; i < counts[at(r)]; ++i) ASSERT_EQ(got[position++], term(r, i)) << i << " of rank " << r;
      }
    }
  }
}

TEST_P(Collectives, BroadcastFromEveryRoot) {
  for (int root = 0; root < size_; ++root) {
    Vector v(1234, GetParam(), [&](int64_t i) { return rank_ == root ? term(root, i) : 99.0; });
    comm_.broadcast(v.x, root).wait();
    const std::vector<double> got = values(v.x);
    for (int64_t i = 0; i < 1234; ++i) ASSERT_EQ(got[at(i)], term(root, i)) << "root " << root;
  }
}

TEST_P(Collectives, AllToAllUneven) {
  // Rank a sends b (5 a + 3 b) % 7 * 100 elements: zero for some pairs.
  auto count = [](int a, int b) { return int64_t{(5 * a + 3 * b) % 7} * 100; };
  std::vector<int64_t> in_counts, out_counts;
  for (int r = 0; r < size_; ++r) in_counts.push_back(count(rank_, r)), out_counts.push_back(count(r, rank_));
  auto element = [](int from, int to, int64_t i) { return static_cast<double>((from * 8 + to + i) % 251); };
  std::vector<double> pieces;
  for (int r = 0; r < size_; ++r) {
    for (int64_t i = 0; i < count(rank_, r); ++i) pieces.push_back(element(rank_, r, i));
  }
  Vector in(total(in_counts), GetParam(), [&](int64_t i) { return pieces[at(i)]; });
  Vector out(total(out_counts), GetParam());
  comm_.all_to_all(out.x, out_counts, in.x, in_counts).wait();
  const std::vector<double> got = values(out.x);
  size_t position = 0;
  for (int r = 0; r < size_; ++r) {
    for (int64_t i = 0; i < count(r, rank_); ++i) ASSERT_EQ(got[position++], element(r, rank_, i)) << "from " << r;
  }
}

TEST_P(Collectives, SendRecvSeveralPerPeerInOrder) {
  // To every rank, itself included: three messages of growing size, one of them empty.
  constexpr std::array<int64_t, 4> kSizes{3, 0, 5000, 40};
  std::vector<Vector> sent, received;
  for (int r = 0; r < size_; ++r) {
    for (int64_t n : kSizes) {
      sent.emplace_back(n, GetParam(), [&](int64_t i) { return static_cast<double>((rank_ + 2 * r + n + i) % 200); });
      received.emplace_back(n, GetParam());
    }
  }
  std::vector<Message> messages;
  for (int r = 0; r < size_; ++r) {
    for (size_t m = 0; m < kSizes.size(); ++m) {
      const size_t k = static_cast<size_t>(r) * kSizes.size() + m;
      messages.push_back({.peer = r, .recv = {}, .send = sent[k].x});
      messages.push_back({.peer = r, .recv = received[k].x, .send = {}});
    }
  }
  comm_.send_recv(messages).wait();
  for (int r = 0; r < size_; ++r) {
    for (size_t m = 0; m < kSizes.size(); ++m) {
      const std::vector<double> got = values(received[static_cast<size_t>(r) * kSizes.size() + m].x);
      for (int64_t i = 0; i < kSizes[m]; ++i) {
        ASSERT_EQ(got[at(i)], static_cast<double>((r + 2 * rank_ + kSizes[m] + i) % 200)) << "from " << r;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Collectives,
                         testing::Values(DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::u16,
                                         DType::u8),
                         [](const auto& test) { return std::string(name_of(test.param)); });

class Communicators : public testing::Test {
 protected:
  Communicator& comm_ = test_comm();
  int rank_ = comm_.rank(), size_ = comm_.size();
};

// Sums in several ways, each twice: the same bits again, and on every rank.
TEST_F(Communicators, SumsHaveTheSameBitsEverywhereAndAgain) {
  constexpr int64_t n = 5003;
  for (DType dtype : {DType::f32, DType::bf16}) {
    std::vector<std::vector<char>> sums;
    for (int again = 0; again < 2; ++again) {
      Vector v(n, dtype, [&](int64_t i) { return wild(21, rank_, i); });
      comm_.all_reduce(v.x, ReduceOp::sum).wait();
      Vector all(n * size_, dtype);
      comm_.all_gather(all.x, v.x, even_counts(size_, n)).wait();
      for (int r = 0; r < size_; ++r) EXPECT_EQ(bits(all.x.slice(0, r * n, n)), bits(v.x)) << "rank " << r;
      sums.push_back(bits(v.x));
      for (const auto& counts : {even_counts(size_, n), uneven_counts(size_)}) {
        Vector in(total(counts), dtype, [&](int64_t i) { return wild(22, rank_, i); }), out(counts[at(rank_)], dtype);
        comm_.reduce_scatter(out.x, in.x, counts).wait();
        sums.push_back(bits(out.x));
      }
    }
    for (size_t k = 0; k < sums.size() / 2; ++k) EXPECT_EQ(sums[k], sums[k + sums.size() / 2]) << k;
  }
}

TEST_F(Communicators, NanSurvivesMaxAndMin) {
  for (ReduceOp op : {ReduceOp::max, ReduceOp::min}) {
    Vector v(2, DType::f64, [&](int64_t i) { return i == 0 && rank_ == size_ / 2 ? NAN : rank_ + 1.0; });
    comm_.all_reduce(v.x, op).wait();
    const std::vector<double> got = values(v.x);
    EXPECT_TRUE(std::isnan(got[0]));
    EXPECT_EQ(got[1], op == ReduceOp::max ? size_ : 1);
  }
}

TEST_F(Communicators, IntegersBeyondDoublesAreExact) {
  int64_t number = (int64_t{1} << 53) + 1 + rank_;
  const Tensor host(&number, {1}, DType::i64);
  Vector v(1, DType::i64);
  copy_blocking(v.x, host);
  comm_.all_reduce(v.x, ReduceOp::max).wait();
  copy_blocking(host, v.x);
  EXPECT_EQ(number, (int64_t{1} << 53) + size_);
}

TEST_F(Communicators, ManyInFlightWaitedInDifferentOrders) {
  constexpr int kOperations = 24;
  constexpr int64_t n = 6000;
  std::vector<Vector> tensors, gathered;
  const auto counts = even_counts(size_, n);
  for (int k = 0; k < kOperations; ++k) {
    tensors.emplace_back(n, DType::f64, [&](int64_t i) { return static_cast<double>(rank_ * 1000 + k + i); });
    gathered.emplace_back(n * size_, DType::f64);
  }
  std::vector<Work> works;
  for (int k = 0; k < kOperations; ++k) {
    const auto j = static_cast<size_t>(k);
    if (k % 3 == 0) works.push_back(comm_.all_reduce(tensors[j].x, ReduceOp::sum));
    if (k % 3 == 1) works.push_back(comm_.all_gather(gathered[j].x, tensors[j].x, counts));
    if (k % 3 == 2) works.push_back(comm_.broadcast(tensors[j].x, k % size_));
  }
  // Even ranks wait from the front, odd ones from the back: legal, and a deadlock unless waiting moves all along.
  for (int k = 0; k < kOperations; ++k) works[static_cast<size_t>(rank_ % 2 ? kOperations - 1 - k : k)].wait();
  for (int k = 0; k < kOperations; ++k) {
    const auto j = static_cast<size_t>(k);
    const std::vector<double> got = values(tensors[j].x), pieces = values(gathered[j].x);
    for (int64_t i = 0; i < n; i += 7) {
      const double own = static_cast<double>(k + i);
      if (k % 3 == 0) {
        ASSERT_EQ(got[at(i)], size_ * own + 500.0 * size_ * (size_ - 1));
      }
      if (k % 3 == 2) {
        ASSERT_EQ(got[at(i)], (k % size_) * 1000 + own);
      }
      for (int r = 0; k % 3 == 1 && r < size_; ++r) ASSERT_EQ(pieces[at(r * n + i)], r * 1000 + own);
    }
  }
}

TEST_F(Communicators, TwoCommunicatorsAtOnce) {
  const auto other = comm_.split(0, -rank_, "reversed");
  EXPECT_EQ(other->rank(), size_ - 1 - rank_);
  constexpr int64_t n = 9000;
  Vector a(n, DType::f32, [&](int64_t i) { return term(rank_, i); });
  Vector b(n, DType::f32, [&](int64_t i) { return term(rank_, i + 1); });
  Work first = comm_.all_reduce(a.x, ReduceOp::sum);
  Work second = other->all_reduce(b.x, ReduceOp::sum);
  comm_.barrier();  // must move both along
  (rank_ % 2 ? first : second).wait();
  (rank_ % 2 ? second : first).wait();
  const std::vector<double> got_a = values(a.x), got_b = values(b.x);
  for (int64_t i = 0; i < n; ++i) {
    double sum_a = 0, sum_b = 0;
    for (int r = 0; r < size_; ++r) sum_a += term(r, i), sum_b += term(r, i + 1);
    ASSERT_EQ(got_a[at(i)], sum_a);
    ASSERT_EQ(got_b[at(i)], sum_b);
  }
}

TEST_F(Communicators, DroppedWorkWaits) {
  Vector v(50000, DType::f32, [&](int64_t i) { return term(rank_, i); });
  { const Work dropped = comm_.all_reduce(v.x, ReduceOp::max); }
  const std::vector<double> got = values(v.x);
  for (int64_t i = 0; i < 50000; i += 11) {
    double largest = 0;
    for (int r = 0; r < size_; ++r) largest = std::max(largest, term(r, i));
    ASSERT_EQ(got[at(i)], largest);
  }
}

TEST_F(Communicators, SplitByColorAndKey) {
  // Thirds, with ranks in reverse order.
  const auto part = comm_.split(rank_ % 3, -rank_, "third");
  const int members = (size_ - rank_ % 3 + 2) / 3;
  ASSERT_EQ(part->size(), members);
  EXPECT_EQ(part->rank(), members - 1 - rank_ / 3);
  EXPECT_EQ(part->name(), "third");
  Vector all(members, DType::i32);
  Vector own(1, DType::i32, [&](int64_t) { return rank_; });
  const std::vector<int64_t> counts(static_cast<size_t>(members), 1);
  part->all_gather(all.x, own.x, counts).wait();
  const std::vector<double> ranks = values(all.x);
  for (int r = 0; r < members; ++r) EXPECT_EQ(ranks[at(r)], rank_ % 3 + 3 * (members - 1 - r));

  const auto nested = part->split(0, part->rank(), "nested");
  Vector sum(1, DType::i64, [&](int64_t) { return 1; });
  nested->all_reduce(sum.x, ReduceOp::sum).wait();
  EXPECT_EQ(values(sum.x)[0], members);
}

TEST_F(Communicators, MessagesOfUnequalPairs) {
  // Rank r sends r messages to each higher rank, numbered; nobody sends down.
  std::vector<Vector> sent, received;
  std::vector<Message> messages;
  sent.reserve(64), received.reserve(64);
  for (int r = 0; r < size_; ++r) {
    for (int m = 0; r > rank_ && m < rank_; ++m) {
      sent.emplace_back(m + 1, DType::u16, [&](int64_t) { return 100 * rank_ + m; });
      messages.push_back({.peer = r, .recv = {}, .send = sent.back().x});
    }
    for (int m = 0; r < rank_ && m < r; ++m) {
      received.emplace_back(m + 1, DType::u16);
      messages.push_back({.peer = r, .recv = received.back().x, .send = {}});
    }
  }
  comm_.send_recv(messages).wait();
  size_t k = 0;
  for (int r = 0; r < rank_; ++r) {
    for (int m = 0; m < r; ++m, ++k) EXPECT_EQ(values(received[k].x)[at(m)], 100 * r + m);
  }
}

TEST_F(Communicators, TrafficToTheByte) {
  const auto comm = comm_.split(0, rank_, "counted");
  constexpr int64_t n = 1001;
  Vector v(n, DType::f32), whole(n * size_, DType::f32), piece(n, DType::f32);
  const auto counts = even_counts(size_, n);
  comm->all_reduce(v.x, ReduceOp::sum).wait();
  comm->all_reduce(v.x, ReduceOp::max).wait();
  comm->reduce_scatter(piece.x, whole.x, counts).wait();
  comm->all_gather(whole.x, piece.x, counts).wait();
  comm->broadcast(v.x, size_ - 1).wait();
  std::vector<int64_t> in_counts, out_counts;
  for (int r = 0; r < size_; ++r) in_counts.push_back(rank_ + r), out_counts.push_back(r + rank_);
  Vector a(total(in_counts), DType::u16), b(total(out_counts), DType::u16);
  comm->all_to_all(b.x, out_counts, a.x, in_counts).wait();
  const int next = (rank_ + 1) % size_, previous = (rank_ + size_ - 1) % size_;
  Vector to_self(5, DType::f64), from_self(5, DType::f64);  // not counted
  const Message group[] = {{.peer = next, .recv = {}, .send = v.x},
                           {.peer = previous, .recv = piece.x, .send = {}},
                           {.peer = rank_, .recv = from_self.x, .send = to_self.x}};
  comm->send_recv(group).wait();
  comm->barrier();
  comm->barrier();

  const TrafficCounter& traffic = comm->traffic();
  auto calls = [&](Collective op) { return traffic.calls[static_cast<size_t>(op)]; };
  auto bytes = [&](Collective op) { return traffic.bytes[static_cast<size_t>(op)]; };
  EXPECT_EQ(calls(Collective::all_reduce), 2);
  EXPECT_EQ(bytes(Collective::all_reduce), 2 * (2 * n * 4 * (size_ - 1) / size_));
  EXPECT_EQ(calls(Collective::reduce_scatter), 1);
  EXPECT_EQ(bytes(Collective::reduce_scatter), n * 4 * (size_ - 1));
  EXPECT_EQ(calls(Collective::all_gather), 1);
  EXPECT_EQ(bytes(Collective::all_gather), n * 4 * (size_ - 1));
  EXPECT_EQ(calls(Collective::broadcast), 1);
  EXPECT_EQ(bytes(Collective::broadcast), rank_ == size_ - 1 ? 0 : n * 4);
  EXPECT_EQ(calls(Collective::all_to_all), 1);
  EXPECT_EQ(bytes(Collective::all_to_all), (total(out_counts) - 2 * rank_) * 2);
  EXPECT_EQ(calls(Collective::send_recv), 1);
  EXPECT_EQ(bytes(Collective::send_recv), size_ == 1 ? 0 : n * 4);
  EXPECT_EQ(calls(Collective::barrier), 2);
  EXPECT_EQ(bytes(Collective::barrier), 0);
  comm->reset_traffic();
  EXPECT_EQ(comm->traffic().calls, TrafficCounter{}.calls);
}

TEST_F(Communicators, RefusesWhatItCannotDo) {
  float memory[6] = {};
  const Device elsewhere = test_device() == Device::cpu ? Device::cuda : Device::cpu;
  const Tensor on_other(memory, {2}, DType::f32, elsewhere);
  const std::vector<int64_t> counts(static_cast<size_t>(size_), 1), short_counts(static_cast<size_t>(size_) + 1, 1);
  Vector whole(size_, DType::f32), two(2, DType::f32), one(1, DType::f64);
  const Tensor strided = Tensor(memory, {3, 2}, DType::f32, test_device()).slice(1, 0, 1);
  auto expect = [&](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
    EXPECT_NE(text.find(str("\"", comm_.name(), "\", rank ", rank_, " of ", size_)), std::string::npos) << text;
  };
  if (size_ > 1)
    expect(error_of([&] { comm_.all_reduce(on_other, ReduceOp::sum).wait(); }), str("is on ", name_of(elsewhere)));
  expect(error_of([&] { comm_.all_reduce(strided, ReduceOp::sum).wait(); }), "not contiguous");
  expect(error_of([&] { comm_.all_gather(whole.x, two.x, counts).wait(); }), "its count is 1");
  expect(error_of([&] { comm_.all_gather(whole.x, one.x, counts).wait(); }), "have different types");
  expect(error_of([&] { comm_.reduce_scatter(one.x, whole.x, short_counts).wait(); }), "one per rank");
  expect(error_of([&] { comm_.broadcast(two.x, size_).wait(); }), "the root is rank");
  const Message to_nobody{.peer = -1, .recv = {}, .send = two.x};
  expect(error_of([&] { comm_.send_recv({&to_nobody, 1}).wait(); }), "the peer is rank -1");
  const Message to_self{.peer = rank_, .recv = {}, .send = two.x};
  expect(error_of([&] { comm_.send_recv({&to_self, 1}).wait(); }), "to itself");
  EXPECT_THROW(comm_.split(-1, 0, "bad"), Error);
  comm_.barrier();
}

}  // namespace
}  // namespace tmamba
