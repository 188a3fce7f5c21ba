#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct SwigluCase : OpCase {
  int64_t N, F;

  SwigluCase(int64_t N_in, int64_t F_in) : N(N_in), F(F_in) {
    name = str("swiglu N ", N, " F ", F);
    seed = 10;
    Random random(seed);
    in["gate_up"] = random.uniform({N, 2 * F}, -4, 4);
    in["grad_h"] = random.uniform({N, F});
  }

  Arrays run(Runner& r) const override {
    const Tensor gate_up = r.in(in.at("gate_up")), dh = r.in(in.at("grad_h"));
    const Tensor h = r.out({N, F}), dgate_up = r.out({N, 2 * F});
    r.ops().swiglu_forward({h, gate_up});
    r.ops().swiglu_backward({dgate_up, dh, gate_up});
    return {{"h", r.get(h)}, {"dgate_up", r.get(dgate_up)}};
  }

  Arrays reference() const override {
    Array h({N, F});
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t f = 0; f < F; ++f) h(n, f) = silu(in.at("gate_up")(n, f)) * in.at("gate_up")(n, F + f);
    }
    return {{"h", h}};
  }
};

std::vector<SwigluCase> cases() { return {{1, 1}, {45, 24}, {257, 43}, {3, 688}}; }

TEST(Swiglu, MatchesPlainLoops) {
  for (const SwigluCase& c : cases()) check_reference(c);
}

TEST(Swiglu, GradientsMatchFiniteDifferences) {
  for (SwigluCase& c : cases()) check_gradients(c);
}

TEST(Swiglu, TypesLayoutsAndThreads) {
  for (const SwigluCase& c : cases()) check_variants(c, 16);
}

// SiLU of +-1000 is 1000 and 0, its slope 1 and 0.
TEST(Swiglu, SaturatedGates) {
  SwigluCase c(1, 2);
  c.in["gate_up"].data = {1000, -1000, 2, 3};
  c.in["grad_h"].data = {1, 1};
  for (DType dtype : {DType::f32, DType::f64}) {
    const Arrays out = run(c, dtype);
    EXPECT_EQ(out.at("h")(0, 0), 2000);
    EXPECT_EQ(out.at("h")(0, 1), 0);
    EXPECT_EQ(out.at("dgate_up").data, (std::vector<double>{2, 0, 1000, 0}));
  }
}

TEST(Swiglu, NoRows) { EXPECT_TRUE(run(SwigluCase(0, 8), DType::f32).at("h").data.empty()); }

}  // namespace
}  // namespace tmamba::test
