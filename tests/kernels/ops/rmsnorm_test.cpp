#include <cmath>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct RmsnormCase : OpCase {
  int64_t N, C;
  bool residual;
  static constexpr double kEps = 1e-3;

  RmsnormCase(int64_t N_in, int64_t C_in, bool residual_in) : N(N_in), C(C_in), residual(residual_in) {
    name = str("rmsnorm N ", N, " C ", C, residual ? " with residual" : "");
    seed = 3;
    Random random(seed);
    in["x"] = random.uniform({N, C});
    in["w"] = random.uniform({C}, 0.5, 1.5);
    in["grad_y"] = random.uniform({N, C});
    if (!residual) return;
    in["delta"] = random.uniform({N, C});
    in["grad_sum"] = random.uniform({N, C});
  }

  Arrays run(Runner& r) const override {
    const Tensor x = r.in(in.at("x")), w = r.in(in.at("w")), dy = r.in(in.at("grad_y"));
    const Tensor y = r.out({N, C}), rstd = r.out_acc({N}), dx = r.out({N, C}), dw = r.added_acc({C});
    if (!residual) {
      r.ops().rmsnorm_forward({y, rstd, {}, x, {}, w, kEps});
      r.ops().rmsnorm_backward({dx, dw, dy, x, rstd, w, {}});
      return {{"y", r.get(y)}, {"rstd", r.get(rstd)}, {"dx", r.get(dx)}, {"dw", r.get_added(dw)}};
    }
    const Tensor delta = r.in(in.at("delta")), sum = r.out({N, C}), dsum = r.in(in.at("grad_sum"));
    r.ops().rmsnorm_forward({y, rstd, sum, x, delta, w, kEps});
    r.ops().rmsnorm_backward({dx, dw, dy, sum, rstd, w, dsum});
    // Again, in place over dresidual.
    const Tensor dw_again = r.added_acc({C});
    r.ops().rmsnorm_backward({dsum, dw_again, dy, sum, rstd, w, dsum});
    return {{"y", r.get(y)},   {"rstd", r.get(rstd)},   {"sum", r.get(sum)},
            {"dx", r.get(dx)}, {"ddelta", r.get(dsum)}, {"dw", r.get_added(dw)}};
  }

  Arrays reference() const override {
    Array y({N, C}), rstd({N}), sum = in.at("x");
    for (int64_t n = 0; n < N; ++n) {
      double squares = 0;
      for (int64_t c = 0; c < C; ++c) {
        if (residual) sum(n, c) += in.at("delta")(n, c);
        squares += sum(n, c) * sum(n, c);
      }
      rstd(n) = 1 / std::sqrt(squares / static_cast<double>(C) + kEps);
      for (int64_t c = 0; c < C; ++c) y(n, c) = sum(n, c) * rstd(n) * in.at("w")(c);
    }
    Arrays out{{"y", y}, {"rstd", rstd}};
    if (residual) out["sum"] = sum;
    return out;
  }
};

std::vector<RmsnormCase> cases() {
  return {{1, 1, true}, {45, 24, false}, {257, 96, true}, {3, 300, true}, {2100, 8, false}};
}

TEST(Rmsnorm, MatchesPlainLoops) {
  for (const RmsnormCase& c : cases()) check_reference(c);
}

TEST(Rmsnorm, GradientsMatchFiniteDifferences) {
  for (RmsnormCase& c : cases()) check_gradients(c);
}

TEST(Rmsnorm, TypesLayoutsAndThreads) {
  for (const RmsnormCase& c : cases()) check_variants(c, 32);
}

TEST(Rmsnorm, NoRows) { EXPECT_EQ(norm(run(RmsnormCase(0, 8, true), DType::f32).at("dw")), 0.0); }

TEST(Rmsnorm, RefusesASumWithoutDelta) {
  Runner r(test_ops(), DType::f32);
  EXPECT_THROW(r.ops().rmsnorm_forward(
                   {r.out({2, 4}), r.out({2}), r.out({2, 4}), r.in(Array({2, 4})), {}, r.in(Array({4})), 1e-5}),
               Error);
}

}  // namespace
}  // namespace tmamba::test
