// The chunks of the head: with a unit of rows, the gradient of a row and a unit's contribution to the sums do not
// depend on the other rows.
#include "model/loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "dist/comm/self_communicator.h"
#include "kernels/base/rng.h"
#include "kernels/ops/canonical_ops.h"
#include "model/parallel.h"

namespace tmamba {
namespace {

constexpr int64_t kVocab = 100000, kWidth = 6, kUnits = 6;
constexpr uint64_t kSeed = 7;

struct Head {
  explicit Head(int64_t unit_in) : unit(unit_in), x(values(unit * kUnits * kWidth, 1)), w(values(kVocab * kWidth, 2)) {
    const Philox random(kSeed, 3);
    for (int64_t n = 0; n < unit * kUnits; ++n)
      targets.push_back(static_cast<int32_t>(random.words(static_cast<uint64_t>(n))[0] % kVocab));
  }

  static std::vector<double> values(int64_t count, uint64_t stream) {
    const Philox random(kSeed, stream);
    std::vector<double> out;
    for (int64_t i = 0; i < count; ++i) out.push_back(random.uniform(static_cast<uint64_t>(i)) - 0.5);
    return out;
  }

  int64_t unit;
  std::vector<double> x, w;
  std::vector<int32_t> targets;
};

// Loss sum, gradient of each unit's rows, and of the head.
struct Gradients {
  std::vector<double> dx, dw;
  double loss = 0;
};

// The results of some units: their rows of dx, their contributions to loss and dw.
Gradients run(const Head& head, const std::vector<int64_t>& units) {
  const auto ops = make_canonical_ops(make_ops(Device::cpu), {.unit = head.unit, .summands = 4});
  SelfCommunicator self("tp");
  const int64_t unit = head.unit, N = unit * std::ssize(units);
  std::vector<double> x;
  std::vector<int32_t> targets;
  for (int64_t u : units) {
    x.insert(x.end(), head.x.begin() + u * unit * kWidth, head.x.begin() + (u + 1) * unit * kWidth);
    targets.insert(targets.end(), head.targets.begin() + u * unit, head.targets.begin() + (u + 1) * unit);
  }
  Gradients out{.dx = std::vector<double>(x.size()), .dw = std::vector<double>(head.w.size()), .loss = 0};
  double count = 0;
  TensorExchange tensor(self, N, exchange_ops(*ops));
  const HeadLoss args{.x_NC = ConstTensor(x.data(), {N, kWidth}, DType::f64),
                      .head_VC = ConstTensor(head.w.data(), {kVocab, kWidth}, DType::f64),
                      .vocab = kVocab,
                      .targets_N = ConstTensor(targets.data(), {N}, DType::i32),
                      .unit = unit,
                      .dx_NC = Tensor(out.dx.data(), {N, kWidth}, DType::f64),
                      .dhead_VC = Tensor(out.dw.data(), {kVocab, kWidth}, DType::f64),
                      .grad_scale = 1.0 / static_cast<double>(unit * kUnits)};
  const LossSums sums{Tensor(&out.loss, {1}, DType::f64), Tensor(&count, {1}, DType::f64), {}};
  Arena scratch(size_t{96} << 20, Device::cpu);
  head_loss(*ops, scratch, tensor, args, sums);
  EXPECT_EQ(count, static_cast<double>(N));
  return out;
}

bool same_bits(const double* a, const double* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(double)) == 0;
}

TEST(HeadLoss, ChunksOfOneUnitGiveTheSameBits) {
  for (int64_t unit : {12, 96}) {  // neither divides 64 nor is divided by it
    SCOPED_TRACE(str("unit ", unit, ", seed ", kSeed));
    const Head head(unit);
    const Gradients all = run(head, {0, 1, 2, 3, 4, 5});
    Gradients sum;
    for (const std::vector<int64_t>& units : {std::vector<int64_t>{1, 2, 5}, {0}, {4, 3}}) {
      const Gradients some = run(head, units);
      const size_t rows = static_cast<size_t>(unit * kWidth);
      for (size_t i = 0; i < units.size(); ++i) {
        EXPECT_TRUE(same_bits(some.dx.data() + i * rows, all.dx.data() + static_cast<size_t>(units[i]) * rows, rows))
            << "rows of unit " << units[i];
      }
      sum.dw.resize(some.dw.size());
      for (size_t i = 0; i < some.dw.size(); ++i) sum.dw[i] += some.dw[i];
      sum.loss += some.loss;
    }
    EXPECT_TRUE(same_bits(sum.dw.data(), all.dw.data(), sum.dw.size()));
    EXPECT_EQ(sum.loss, all.loss);
    EXPECT_NEAR(all.loss / static_cast<double>(unit * kUnits), std::log(static_cast<double>(kVocab)), 0.2);
  }
}

}  // namespace
}  // namespace tmamba
