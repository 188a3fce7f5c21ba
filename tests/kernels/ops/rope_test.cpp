#include <cmath>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct RopeCase : OpCase {
  int64_t B, T, H, D, position;
  double theta;

  RopeCase(int64_t B_in, int64_t T_in, int64_t H_in, int64_t D_in, int64_t position_in, double theta_in = 10000.0)
      : B(B_in), T(T_in), H(H_in), D(D_in), position(position_in), theta(theta_in) {
    name = str("rope B ", B, " T ", T, " H ", H, " D ", D, " position ", position, " theta ", theta);
    seed = 8;
    Random random(seed);
    in["x"] = random.uniform({B, T, H, D});
    in["grad_y"] = random.uniform({B, T, H, D});
  }

  Arrays run(Runner& r) const override {
    const Tensor x = r.in(in.at("x")), dy = r.in(in.at("grad_y")), y = r.out({B, T, H, D}), dx = r.out({B, T, H, D});
    r.ops().rope_forward({y, x, position, theta});
    r.ops().rope_backward({dx, dy, position, theta});
    const Arrays out{{"y", r.get(y)}, {"dx", r.get(dx)}};
    r.ops().rope_forward({x, x, position, theta});
    r.ops().rope_backward({dy, dy, position, theta});
    expect_same_bits({{"y", r.get(x)}, {"dx", r.get(dy)}}, out, name + " in place");
    return out;
  }

  Arrays reference() const override {
    Array y({B, T, H, D});
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t h = 0; h < H; ++h) {
          for (int64_t i = 0; i < D / 2; ++i) {
            const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(D));
            const double angle = static_cast<double>(position + t) * frequency;
            const double first = in.at("x")(b, t, h, i), second = in.at("x")(b, t, h, D / 2 + i);
            y(b, t, h, i) = first * std::cos(angle) - second * std::sin(angle);
            y(b, t, h, D / 2 + i) = first * std::sin(angle) + second * std::cos(angle);
          }
        }
      }
    }
    return {{"y", y}};
  }
};

// Another position, width and theta from case to case: the table of angles must follow.
std::vector<RopeCase> cases() {
  return {{1, 1, 1, 8, 0},     {3, 45, 2, 24, 250},        {2, 257, 1, 96, 511},
          {1, 20, 2, 96, 100}, {1, 20, 2, 96, 100, 500.0}, {1, 45, 1, 8, 100000}};
}

TEST(Rope, MatchesPlainLoops) {
  for (const RopeCase& c : cases()) check_reference(c, 1e-10);
}

TEST(Rope, GradientsMatchFiniteDifferences) {
  for (RopeCase& c : cases()) check_gradients(c);
}

TEST(Rope, TypesLayoutsAndThreads) {
  for (const RopeCase& c : cases()) check_variants(c, 16);
}

// A rank that holds a later segment rotates exactly as one that holds the whole sequence.
TEST(Rope, PositionsDoNotDependOnTheSegment) {
  const RopeCase whole(1, 600, 1, 24, 0);
  RopeCase part(1, 100, 1, 24, 300);
  part.in["x"] = whole.in.at("x").slice(1, 300, 100);
  EXPECT_EQ(relative_error(run(part, DType::f32).at("y"), run(whole, DType::f32).at("y").slice(1, 300, 100)), 0.0);
}

TEST(Rope, RefusesAnOddWidth) {
  EXPECT_THROW(run(RopeCase(1, 2, 1, 7, 0), DType::f64), Error);
  EXPECT_THROW(run(RopeCase(1, 2, 1, 8, -1), DType::f64), Error);
}

}  // namespace
}  // namespace tmamba::test
