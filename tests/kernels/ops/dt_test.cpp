#include <cmath>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct DtCase : OpCase {
  int64_t N, H;

  DtCase(int64_t N_in, int64_t H_in, double range = 3) : N(N_in), H(H_in) {
    name = str("dt N ", N, " H ", H);
    seed = 9;
    Random random(seed);
    in["raw"] = random.uniform({N, H}, -range, range);
    in["bias"] = random.uniform({H});
    in["A_log"] = random.uniform({H}, 0, 2);
    in["grad_dt"] = random.uniform({N, H});
    in["grad_log_a"] = random.uniform({N, H});
  }

  Arrays run(Runner& r) const override {
    const Tensor raw = r.in(in.at("raw")), bias = r.in(in.at("bias")), A_log = r.in(in.at("A_log"));
    const Tensor ddt = r.in_acc(in.at("grad_dt")), dlog_a = r.in_acc(in.at("grad_log_a"));
    const Tensor dt = r.out_acc({N, H}), log_a = r.out_acc({N, H}), draw = r.out({N, H});
    const Tensor dbias = r.added_acc({H}), dA_log = r.added_acc({H});
    r.ops().dt_forward({dt, log_a, raw, bias, A_log});
    r.ops().dt_backward({draw, dbias, dA_log, ddt, dlog_a, raw, bias, A_log});
    return {{"dt", r.get(dt)},
            {"log_a", r.get(log_a)},
            {"draw", r.get(draw)},
            {"dbias", r.get_added(dbias)},
            {"dA_log", r.get_added(dA_log)}};
  }

  Arrays reference() const override {
    Array dt({N, H}), log_a({N, H});
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t h = 0; h < H; ++h) {
        dt(n, h) = std::log1p(std::exp(in.at("raw")(n, h) + in.at("bias")(h)));
        log_a(n, h) = -dt(n, h) * std::exp(in.at("A_log")(h));
      }
    }
    return {{"dt", dt}, {"log_a", log_a}};
  }
};

std::vector<DtCase> cases() { return {{1, 1}, {45, 4}, {257, 3}, {5000, 2}}; }

TEST(Dt, MatchesPlainLoops) {
  for (const DtCase& c : cases()) check_reference(c);
}

TEST(Dt, GradientsMatchFiniteDifferences) {
  for (DtCase& c : cases()) check_gradients(c);
}

TEST(Dt, TypesLayoutsAndThreads) {
  for (const DtCase& c : cases()) check_variants(c, 32);
}

// softplus(x) is x for large x and e^x for very negative x: no overflow, no flush to zero, no NaN.
TEST(Dt, ExtremeInputs) {
  DtCase c(4, 1);
  c.in["bias"](0) = 0;
  c.in["raw"].data = {200, 90, -30, -80};
  for (DType dtype : {DType::f32, DType::f64}) {
    const Arrays out = run(c, dtype);
    const double tolerance = dtype == DType::f32 ? 1e-6 : 1e-15;
    for (int64_t n = 0; n < 4; ++n) {
      const double x = c.in["raw"](n, 0), expected = x > 0 ? x : std::log1p(std::exp(x));
      EXPECT_NEAR(out.at("dt")(n, 0) / expected, 1, tolerance) << x;
      EXPECT_TRUE(std::isfinite(out.at("draw")(n, 0))) << x;
    }
  }
}

TEST(Dt, NoRows) { EXPECT_EQ(norm(run(DtCase(0, 4), DType::f32).at("dbias")), 0.0); }

}  // namespace
}  // namespace tmamba::test
