#include "kernels/cpu/vec_math.h"

#include <gtest/gtest.h>

namespace tmamba {
namespace {

// Units in the last place between x and the exact value.
double units(float x, double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  return std::abs(static_cast<double>(x) - exact) / std::ldexp(1.0, exponent - 24);
}

TEST(VecMath, ExpWithinTwoUnits) {
  double worst = 0;
  for (double x = -87.3; x < 88.3; x += 0x1p-13) {
    const auto argument = static_cast<float>(x);
    worst = std::max(worst, units(fast_exp(argument), std::exp(static_cast<double>(argument))));
  }
  EXPECT_LT(worst, 2.0);
  EXPECT_GT(worst, 0.5);  // a rounded result cannot always be better
}

TEST(VecMath, ExpAtTheEnds) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-inf), 0.0f);
  EXPECT_EQ(fast_exp(-1e30f), 0.0f);
  EXPECT_EQ(fast_exp(-88.0f), 0.0f);
  EXPECT_EQ(fast_exp(89.0f), inf);
  EXPECT_EQ(fast_exp(1e30f), inf);
  EXPECT_EQ(fast_exp(inf), inf);
  EXPECT_TRUE(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

template <class T>
double worst_sigmoid(double tolerance_range) {
  double worst = 0;
  for (double x = -tolerance_range; x < tolerance_range; x += 0x1p-9) {
    const auto argument = static_cast<T>(x);
    const double exact = 1 / (1 + std::exp(-static_cast<double>(argument)));
    worst = std::max(worst, std::abs(static_cast<double>(sigmoid(argument)) - exact) / exact);
  }
  return worst;
}

TEST(VecMath, Sigmoid) {
  EXPECT_LT(worst_sigmoid<float>(80), 4 * 0x1p-24);
  EXPECT_LT(worst_sigmoid<double>(80), 4 * 0x1p-53);
  EXPECT_EQ(sigmoid(-1000.0f), 0.0f);
  EXPECT_EQ(sigmoid(1000.0f), 1.0f);
}

TEST(VecMath, Softplus) {
  for (double x = -80; x < 80; x += 0x1p-5) {
    const double exact = x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
    EXPECT_NEAR(static_cast<double>(softplus(static_cast<float>(x))) / exact, 1, 8 * 0x1p-24) << x;
  }
}

}  // namespace
}  // namespace tmamba
