// Every collective with answers known exactly, on 1 to 8 ranks.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "dist/mpi_communicator.h"
#include "dist/reduce.h"
#include "kernels/base/buffer.h"
#include "kernels/base/rng.h"
#include "tests/dist/mpi_main.h"

namespace tmamba {
namespace {

bf16_t to_bf16(double x) { return {static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16)}; }
double from_bf16(bf16_t x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

// Element i of a tensor of any type, as a number. The tests use integers up to 255, exact in every type.
double get(const ConstTensor& x, int64_t i) {
  switch (x.dtype()) {
    case DType::f32:
      return x.data<float>()[i];
    case DType::f64:
      return x.data<double>()[i];
    case DType::bf16:
      return from_bf16(x.data<bf16_t>()[i]);
    case DType::i32:
      return x.data<int32_t>()[i];
    case DType::i64:
      return static_cast<double>(x.data<int64_t>()[i]);
    case DType::u16:
      return x.data<uint16_t>()[i];
    case DType::u8:
      return x.data<uint8_t>()[i];
  }
  return NAN;
}

void set(const Tensor& x, int64_t i, double value) {
  switch (x.dtype()) {
    case DType::f32:
      x.data<float>()[i] = static_cast<float>(value);
      break;
    case DType::f64:
      x.data<double>()[i] = value;
      break;
    case DType::bf16:
      x.data<bf16_t>()[i] = to_bf16(value);
      break;
    case DType::i32:
      x.data<int32_t>()[i] = static_cast<int32_t>(value);
      break;
    case DType::i64:
      x.data<int64_t>()[i] = static_cast<int64_t>(value);
      break;
    case DType::u16:
      x.data<uint16_t>()[i] = static_cast<uint16_t>(value);
      break;
    case DType::u8:
      x.data<uint8_t>()[i] = static_cast<uint8_t>(value);
      break;
  }
}

// A vector with its memory.
struct Vector {
  Vector(int64_t n, DType dtype) : buffer({n}, dtype), x(buffer.tensor({n}, dtype)) {}
  template <class F>
  Vector(int64_t n, DType dtype, F f) : Vector(n, dtype) {
    for (int64_t i = 0; i < n; ++i) set(x, i, f(i));
  }
  Buffer buffer;
  Tensor x;
};

// What rank `rank` holds at i: at most 7, so that sums over 8 ranks stay exact in bfloat16 and uint8.
double term(int rank, int64_t i) { return static_cast<double>((3 * rank + i) % 8); }

// A different number of elements on every rank, none on some.
std::vector<int64_t> uneven_counts(int size) {
  std::vector<int64_t> counts;
  for (int r = 0; r < size; ++r) counts.push_back(r % 3 == 1 ? 0 : 1000 * r + 7);
  return counts;
}

int64_t total(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

class Collectives : public testing::TestWithParam<DType> {
 protected:
  Communicator& comm_ = test_world().comm();
  int rank_ = comm_.rank(), size_ = comm_.size();
};

TEST_P(Collectives, AllReduceSum) {
  for (int64_t n : {0, 1, 5, 2047, 40000}) {
    Vector v(n, GetParam(), [&](int64_t i) { return term(rank_, i); });
    comm_.all_reduce(v.x, ReduceOp::sum).wait();
    for (int64_t i = 0; i < n; ++i) {
      double expected = 0;
      for (int r = 0; r < size_; ++r) expected += term(r, i);
      ASSERT_EQ(get(v.x, i), expected) << "element " << i << " of " << n;
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
    for (int64_t i = 0; i < n; ++i) {
      double largest = 0, smallest = 8;
      for (int r = 0; r < size_; ++r)
        largest = std::max(largest, term(r, i)), smallest = std::min(smallest, term(r, i));
      ASSERT_EQ(get(v.x, i), largest) << i;
      ASSERT_EQ(get(w.x, i), smallest) << i;
    }
  }
}

TEST_P(Collectives, ReduceScatterUneven) {
  const auto counts = uneven_counts(size_);
  const int64_t mine = counts[static_cast<size_t>(rank_)];
  const int64_t begin = std::accumulate(counts.begin(), counts.begin() + rank_, int64_t{0});
  for (bool in_place : {false, true}) {
    Vector in(total(counts), GetParam(), [&](int64_t i) { return term(rank_, i); });
    Vector separate(mine, GetParam());
    const Tensor out = in_place ? in.x.slice(0, begin, mine) : separate.x;
    comm_.reduce_scatter(out, in.x, counts).wait();
    for (int64_t i = 0; i < mine; ++i) {
      double expected = 0;
      for (int r = 0; r < size_; ++r) expected += term(r, begin + i);
      ASSERT_EQ(get(out, i), expected) << i << " in place " << in_place;
    }
  }
}

TEST_P(Collectives, AllGatherUneven) {
  const auto counts = uneven_counts(size_);
  const int64_t mine = counts[static_cast<size_t>(rank_)];
  const int64_t begin = std::accumulate(counts.begin(), counts.begin() + rank_, int64_t{0});
  for (bool in_place : {false, true}) {
    Vector out(total(counts), GetParam());
    Vector separate(mine, GetParam());
    const Tensor in = in_place ? out.x.slice(0, begin, mine) : separate.x;
    for (int64_t i = 0; i < mine; ++i) set(in, i, term(rank_, i));
    comm_.all_gather(out.x, in, counts).wait();
    int64_t position = 0;
    for (int r = 0; r < size_; ++r) {
      for (int64_t i = 0; i < counts[static_cast<size_t>(r)]; ++i) ASSERT_EQ(get(out.x, position++), term(r, i));
    }
  }
}

TEST_P(Collectives, BroadcastFromEveryRoot) {
  for (int root = 0; root < size_; ++root) {
    Vector v(1234, GetParam(), [&](int64_t i) { return rank_ == root ? term(root, i) : 99.0; });
    comm_.broadcast(v.x, root).wait();
    for (int64_t i = 0; i < 1234; ++i) ASSERT_EQ(get(v.x, i), term(root, i)) << "root " << root;
  }
}

TEST_P(Collectives, AllToAllUneven) {
  // Rank a sends b (5 a + 3 b) % 7 * 100 elements: zero for some pairs.
  auto count = [](int a, int b) { return int64_t{(5 * a + 3 * b) % 7} * 100; };
  std::vector<int64_t> in_counts, out_counts;
  for (int r = 0; r < size_; ++r) in_counts.push_back(count(rank_, r)), out_counts.push_back(count(r, rank_));
  Vector in(total(in_counts), GetParam()), out(total(out_counts), GetParam());
  int64_t position = 0;
  for (int r = 0; r < size_; ++r) {
    for (int64_t i = 0; i < count(rank_, r); ++i) set(in.x, position++, static_cast<double>((rank_ * 8 + r + i) % 251));
  }
  comm_.all_to_all(out.x, out_counts, in.x, in_counts).wait();
  position = 0;
  for (int r = 0; r < size_; ++r) {
    for (int64_t i = 0; i < count(r, rank_); ++i) {
      ASSERT_EQ(get(out.x, position++), static_cast<double>((r * 8 + rank_ + i) % 251)) << "from " << r;
    }
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
      const Tensor& x = received[static_cast<size_t>(r) * kSizes.size() + m].x;
      for (int64_t i = 0; i < kSizes[m]; ++i) {
        ASSERT_EQ(get(x, i), static_cast<double>((r + 2 * rank_ + kSizes[m] + i) % 200)) << "from " << r;
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
  Communicator& comm_ = test_world().comm();
  int rank_ = comm_.rank(), size_ = comm_.size();

  // Numbers of very different size, so that another order of the sum has other bits.
  float wild(uint64_t seed, int rank, int64_t i) const {
    const Philox random(seed, static_cast<uint64_t>(rank));
    return static_cast<float>(random.normal(static_cast<uint64_t>(i)) *
                              std::pow(10.0, 6 * random.uniform(static_cast<uint64_t>(i) + 1000000)));
  }
};

TEST_F(Communicators, SumsAreInRankOrderToTheBit) {
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

TEST_F(Communicators, EveryRankGetsTheSameBits) {
  constexpr int64_t n = 5003;
  Vector v(n, DType::f32, [&](int64_t i) { return wild(21, rank_, i); });
  comm_.all_reduce(v.x, ReduceOp::sum).wait();
  Vector all(n * size_, DType::f32);
  const std::vector<int64_t> counts(static_cast<size_t>(size_), n);
  comm_.all_gather(all.x, v.x, counts).wait();
  for (int r = 0; r < size_; ++r) {
    EXPECT_EQ(std::memcmp(all.x.slice(0, r * n, n).raw(), v.x.raw(), n * sizeof(float)), 0) << "rank " << r;
  }
}

TEST_F(Communicators, NanSurvivesMaxAndMin) {
  for (ReduceOp op : {ReduceOp::max, ReduceOp::min}) {
    Vector v(2, DType::f64, [&](int64_t i) { return i == 0 && rank_ == size_ / 2 ? NAN : rank_ + 1.0; });
    comm_.all_reduce(v.x, op).wait();
    EXPECT_TRUE(std::isnan(get(v.x, 0)));
    EXPECT_EQ(get(v.x, 1), op == ReduceOp::max ? size_ : 1);
  }
}

TEST_F(Communicators, IntegersBeyondDoublesAreExact) {
  Vector v(1, DType::i64);
  v.x.data<int64_t>()[0] = (int64_t{1} << 53) + 1 + rank_;
  comm_.all_reduce(v.x, ReduceOp::max).wait();
  EXPECT_EQ(v.x.data<int64_t>()[0], (int64_t{1} << 53) + size_);
}

TEST_F(Communicators, ManyInFlightWaitedInDifferentOrders) {
  constexpr int kOperations = 24;
  constexpr int64_t n = 6000;
  std::vector<Vector> tensors, gathered;
  const std::vector<int64_t> counts(static_cast<size_t>(size_), n);
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
    for (int64_t i = 0; i < n; i += 7) {
      const double own = static_cast<double>(k + i);
      if (k % 3 == 0) {
        ASSERT_EQ(get(tensors[j].x, i), size_ * own + 500.0 * size_ * (size_ - 1));
      }
      if (k % 3 == 2) {
        ASSERT_EQ(get(tensors[j].x, i), (k % size_) * 1000 + own);
      }
      for (int r = 0; k % 3 == 1 && r < size_; ++r) ASSERT_EQ(get(gathered[j].x, r * n + i), r * 1000 + own);
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
  for (int64_t i = 0; i < n; ++i) {
    double sum_a = 0, sum_b = 0;
    for (int r = 0; r < size_; ++r) sum_a += term(r, i), sum_b += term(r, i + 1);
    ASSERT_EQ(get(a.x, i), sum_a);
    ASSERT_EQ(get(b.x, i), sum_b);
  }
}

TEST_F(Communicators, DroppedWorkWaits) {
  Vector v(50000, DType::f32, [&](int64_t i) { return term(rank_, i); });
  { const Work dropped = comm_.all_reduce(v.x, ReduceOp::max); }
  for (int64_t i = 0; i < 50000; i += 11) {
    double largest = 0;
    for (int r = 0; r < size_; ++r) largest = std::max(largest, term(r, i));
    ASSERT_EQ(get(v.x, i), largest);
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
  for (int r = 0; r < members; ++r) EXPECT_EQ(get(all.x, r), rank_ % 3 + 3 * (members - 1 - r));

  const auto nested = part->split(0, part->rank(), "nested");
  Vector sum(1, DType::i64, [&](int64_t) { return 1; });
  nested->all_reduce(sum.x, ReduceOp::sum).wait();
  EXPECT_EQ(get(sum.x, 0), members);
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
    for (int m = 0; m < r; ++m, ++k) EXPECT_EQ(get(received[k].x, m), 100 * r + m);
  }
}

TEST_F(Communicators, MessagesInChunksOfAnySize) {
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

TEST_F(Communicators, TrafficToTheByte) {
  const auto comm = comm_.split(0, rank_, "counted");
  constexpr int64_t n = 1001;
  Vector v(n, DType::f32), whole(n * size_, DType::f32), piece(n, DType::f32);
  const std::vector<int64_t> counts(static_cast<size_t>(size_), n);
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

// Text of the Error that `f` throws; refused calls must throw before anything is sent, so all ranks can go on.
template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

TEST_F(Communicators, RefusesWhatItCannotDo) {
  float memory[6] = {};
  const Tensor on_gpu(memory, {2}, DType::f32, Device::cuda);
  const std::vector<int64_t> counts(static_cast<size_t>(size_), 1), short_counts(static_cast<size_t>(size_) + 1, 1);
  Vector whole(size_, DType::f32), two(2, DType::f32), one(1, DType::f64);
  const Tensor strided = Tensor(memory, {3, 2}, DType::f32).slice(1, 0, 1);
  auto expect = [&](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
    EXPECT_NE(text.find(str("\"world\", rank ", rank_, " of ", size_)), std::string::npos) << text;
  };
  if (size_ > 1) expect(error_of([&] { comm_.all_reduce(on_gpu, ReduceOp::sum).wait(); }), "lies on cuda");
  expect(error_of([&] { comm_.all_reduce(strided, ReduceOp::sum).wait(); }), "not contiguous");
  expect(error_of([&] { comm_.all_gather(whole.x, two.x, counts).wait(); }), "its count is 1");
  expect(error_of([&] { comm_.all_gather(whole.x, one.x, counts).wait(); }), "float64 in one call");
  expect(error_of([&] { comm_.reduce_scatter(one.x, whole.x, short_counts).wait(); }), "one per rank");
  expect(error_of([&] { comm_.broadcast(two.x, size_).wait(); }), "the root is rank");
  const Message to_nobody{.peer = -1, .recv = {}, .send = two.x};
  expect(error_of([&] { comm_.send_recv({&to_nobody, 1}).wait(); }), "the peer is rank -1");
  const Message to_self{.peer = rank_, .recv = {}, .send = two.x};
  expect(error_of([&] { comm_.send_recv({&to_self, 1}).wait(); }), "to itself");
  EXPECT_THROW(comm_.split(-1, 0, "bad"), Error);
  comm_.barrier();
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
