#include <cmath>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct CrossEntropyCase : OpCase {
  int64_t N, V;
  static constexpr double kScale = 0.25;

  CrossEntropyCase(int64_t N_in, int64_t V_in) : N(N_in), V(V_in) {
    name = str("cross_entropy N ", N, " V ", V);
    seed = 13;
    Random random(seed);
    in["logits"] = random.uniform({N, V}, -5, 5);
    in["targets"] = random.uniform({N}, 0, static_cast<double>(V));
    int64_t n = 0;
    // Every seventh token is not counted.
    for (double& target : in["targets"].data) {
      target = n++ % 7 == 6 ? -1 : std::min(std::floor(target), static_cast<double>(V - 1));
    }
    in["grad_loss"] = Array({N}, kScale);
  }

  Arrays run(Runner& r) const override {
    const Tensor logits = r.in(in.at("logits")), targets = r.ints(in.at("targets"));
    const Tensor max = r.out_acc({N}), sum_exp = r.out_acc({N}), target = r.out_acc({N}), loss = r.out_acc({N});
    const Tensor loss_sum = r.make(Array({1}, 0.25), DType::f64), count = r.make(Array({1}, 0.25), DType::f64);
    r.ops().cross_entropy_stats({max, sum_exp, target, logits, targets, 0});
    r.ops().cross_entropy_loss({loss_sum, count, loss, max, sum_exp, target, targets});
    r.ops().cross_entropy_gradient({logits, max, sum_exp, targets, 0, kScale});
    return {{"max", r.get(max)},
            {"loss", r.get(loss)},
            {"loss_sum", r.get_added(loss_sum)},
            {"count", r.get_added(count)},
            {"dlogits", r.get(logits)}};
  }

  Arrays reference() const override {
    Array loss({N}), loss_sum({1}), count({1}), max({N}, -1e300);
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0;
      for (int64_t v = 0; v < V; ++v) {
        sum += std::exp(in.at("logits")(n, v));
        max(n) = std::max(max(n), in.at("logits")(n, v));
      }
      const auto target = static_cast<int64_t>(in.at("targets")(n));
      if (target < 0) continue;
      loss(n) = std::log(sum) - in.at("logits")(n, target);
      loss_sum(0) += loss(n);
      count(0) += 1;
    }
    return {{"max", max}, {"loss", loss}, {"loss_sum", loss_sum}, {"count", count}};
  }
};

std::vector<CrossEntropyCase> cases() { return {{1, 2}, {45, 24}, {257, 301}, {9, 5000}, {2200, 3}}; }

TEST(CrossEntropy, MatchesPlainLoops) {
  for (const CrossEntropyCase& c : cases()) check_reference(c);
}

TEST(CrossEntropy, GradientsMatchFiniteDifferences) {
  for (CrossEntropyCase& c : cases()) check_gradients(c);
}

TEST(CrossEntropy, TypesLayoutsAndThreads) {
  for (const CrossEntropyCase& c : cases()) check_variants(c, 64);
}

TEST(CrossEntropy, TokensThatDoNotCount) {
  CrossEntropyCase c(3, 4);
  c.in["targets"].data = {-1, 2, -100};
  c.in["logits"](0, 1) = std::nan("");  // must not reach the sum, nor leave a NaN gradient
  const Arrays out = run(c, DType::f32);
  EXPECT_EQ(out.at("count")(0), 1);
  EXPECT_EQ(out.at("loss")(0), 0);
  EXPECT_EQ(out.at("loss")(2), 0);
  EXPECT_EQ(norm(out.at("dlogits").slice(0, 0, 1)), 0);
  EXPECT_EQ(norm(out.at("dlogits").slice(0, 2, 1)), 0);
  EXPECT_GT(norm(out.at("dlogits").slice(0, 1, 1)), 0);
}

TEST(CrossEntropy, LargeLogits) {
  CrossEntropyCase c(1, 3);
  c.in["logits"].data = {1e4, -1e4, 1e4};
  c.in["targets"].data = {0};
  for (DType dtype : {DType::f32, DType::f64}) {
    const Arrays out = run(c, dtype);
    EXPECT_NEAR(out.at("loss")(0), std::log(2.0), 1e-3);
    EXPECT_NEAR(out.at("dlogits")(0, 0), -0.5 * CrossEntropyCase::kScale, 1e-7);
    EXPECT_EQ(out.at("dlogits")(0, 1), 0);
  }
}

// The shards of a vocabulary, their statistics combined as ranks do it, give the loss and the gradient of the whole.
TEST(CrossEntropy, ShardsCombineToTheWhole) {
  const CrossEntropyCase whole(50, 31);
  const Arrays all = run(whole, DType::f64);
  const std::vector<std::pair<int64_t, int64_t>> shards{{0, 11}, {11, 11}, {22, 9}};
  Runner r(test_ops(), DType::f64, 2);
  const Tensor targets = r.ints(whole.in.at("targets"));
  std::vector<Array> maxima, sums, hits;
  for (const auto& [begin, count] : shards) {
    const Tensor max = r.out({50}), sum = r.out({50}), hit = r.out({50});
    r.ops().cross_entropy_stats({max, sum, hit, r.in(whole.in.at("logits").slice(1, begin, count)), targets, begin});
    maxima.push_back(r.get(max)), sums.push_back(r.get(sum)), hits.push_back(r.get(hit));
  }
  Array max({50}, -1e300), sum({50}), hit({50});
  for (int64_t n = 0; n < 50; ++n) {
    for (const Array& m : maxima) max(n) = std::max(max(n), m(n));
    for (size_t i = 0; i < shards.size(); ++i) {
      sum(n) += sums[i](n) * std::exp(maxima[i](n) - max(n));
      hit(n) += hits[i](n);
    }
  }
  const Tensor loss = r.out({50}), loss_sum = r.make(Array({1}), DType::f64), count = r.make(Array({1}), DType::f64);
  r.ops().cross_entropy_loss({loss_sum, count, loss, r.in(max), r.in(sum), r.in(hit), targets});
  EXPECT_LT(relative_error(r.get(loss), all.at("loss")), 1e-14);
  EXPECT_LT(relative_error(r.get(loss_sum), all.at("loss_sum")), 1e-14);
  for (const auto& [begin, columns] : shards) {
    const Tensor logits = r.in(whole.in.at("logits").slice(1, begin, columns));
    r.ops().cross_entropy_gradient({logits, r.in(max), r.in(sum), targets, begin, CrossEntropyCase::kScale});
    EXPECT_LT(relative_error(r.get(logits), all.at("dlogits").slice(1, begin, columns)), 1e-14);
  }
}

TEST(CrossEntropy, LossPerTokenIsOptional) {
  Runner r(test_ops(), DType::f32);
  const Tensor loss_sum = r.make(Array({1}), DType::f64), count = r.make(Array({1}), DType::f64);
  r.ops().cross_entropy_loss({loss_sum,
                              count,
                              {},
                              r.in(Array({2}, 1.0)),
                              r.in(Array({2}, 1.0)),
                              r.in(Array({2}, 0.5)),
                              r.ints(Array({2}, 0.0))});
  EXPECT_EQ(r.get(loss_sum)(0), 1.0);
  EXPECT_EQ(r.get(count)(0), 2.0);
}

}  // namespace
}  // namespace tmamba::test
