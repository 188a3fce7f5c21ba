#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct LinearCase : OpCase {
  int64_t N, I, O;

  LinearCase(int64_t N_in, int64_t I_in, int64_t O_in) : N(N_in), I(I_in), O(O_in) {
    name = str("linear N ", N, " I ", I, " O ", O);
    seed = 5;
    Random random(seed);
    in["x"] = random.uniform({N, I});
    in["w"] = random.uniform({O, I});
    in["grad_y"] = random.uniform({N, O});
  }

  Arrays run(Runner& r) const override {
    const Tensor x = r.in(in.at("x")), w = r.in(in.at("w")), dy = r.in(in.at("grad_y"));
    const Tensor y = r.out({N, O}), dx = r.out({N, I}), dx_added = r.added({N, I}), dw = r.added_acc({O, I});
    r.ops().linear_forward({y, x, w});
    r.ops().linear_backward_input({dx, dy, w, false});
    r.ops().linear_backward_input({dx_added, dy, w, true});
    r.ops().linear_backward_weight({dw, dy, x});
    const double units = r.dtype() == DType::f32 ? 1e-5 : 1e-13;
    EXPECT_LT(relative_error(r.get_added(dx_added), r.get(dx)), units) << name;
    return {{"y", r.get(y)}, {"dx", r.get(dx)}, {"dw", r.get_added(dw)}};
  }

  Arrays reference() const override {
    Array y({N, O});
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t o = 0; o < O; ++o) {
        for (int64_t i = 0; i < I; ++i) y(n, o) += in.at("x")(n, i) * in.at("w")(o, i);
      }
    }
    return {{"y", y}};
  }
};

// The last ones cut their tiles unevenly: rows, columns, a weight too small to share out, a weight of several tiles.
std::vector<LinearCase> cases() {
  return {{1, 1, 1}, {45, 24, 8}, {257, 96, 3}, {300, 17, 1100}, {2500, 9, 4}, {70, 300, 290}};
}

TEST(Linear, MatchesPlainLoops) {
  for (const LinearCase& c : cases()) check_reference(c);
}

TEST(Linear, GradientsMatchFiniteDifferences) {
  for (LinearCase& c : cases()) check_gradients(c);
}

TEST(Linear, TypesLayoutsAndThreads) {
  for (const LinearCase& c : cases()) check_variants(c, 64);
}

TEST(Linear, NoRows) { EXPECT_EQ(norm(run(LinearCase(0, 8, 4), DType::f32).at("dw")), 0.0); }

TEST(Linear, NamesTheTensorThatDoesNotFit) {
  Runner r(test_ops(), DType::f32);
  try {
    r.ops().linear_forward({r.out({3, 5}), r.in(Array({3, 4})), r.in(Array({5, 6}))});
    FAIL() << "a weight of 6 inputs took rows of 4";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("w_OI is [5, 6] float32, expected [5, 4]"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace tmamba::test
