#include <cmath>
#include <limits>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

constexpr AdamwRule kRule{.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-3, .weight_decay = 0.1};
constexpr double kStepLr = 0.01, kCorrection1 = 0.19, kCorrection2 = 0.0975, kScale = 0.5;

Tensor scalars(Runner& r, bool applied) {
  return r.make(array_of(StepScalars{.lr = kStepLr,
                                     .bias_correction1 = kCorrection1,
                                     .bias_correction2 = kCorrection2,
                                     .grad_scale = kScale,
                                     .applied = applied ? 1.0 : 0.0}),
                DType::f64);
}

struct State {
  Array master, m, v, grad;
  explicit State(int64_t n, uint64_t seed = 14) {
    Random random(seed);
    master = random.uniform({n}), m = random.uniform({n}), v = random.uniform({n}, 0, 1), grad = random.uniform({n});
  }
};

State stepped(State s, bool decay) {
  for (int64_t i = 0; i < s.master.numel(); ++i) {
    const double g = s.grad(i) * kScale;
    s.m(i) = kRule.beta1 * s.m(i) + (1 - kRule.beta1) * g;
    s.v(i) = kRule.beta2 * s.v(i) + (1 - kRule.beta2) * g * g;
    const double m = s.m(i) / kCorrection1, v = s.v(i) / kCorrection2;
    s.master(i) -= kStepLr * (m / (std::sqrt(v) + kRule.eps) + (decay ? kRule.weight_decay * s.master(i) : 0));
  }
  return s;
}

TEST(Adamw, MatchesPlainLoops) {
  for (DType dtype : {DType::f32, DType::f64}) {
    Runner r(test_ops(), dtype);
    std::vector<State> states{State(1), State(40000, 15), State(0), State(77, 16)};
    std::vector<AdamwTensor> tensors;
    for (size_t i = 0; i < states.size(); ++i) {
      const Tensor master = r.in(states[i].master);
      tensors.push_back({master, master, r.in(states[i].m), r.in(states[i].v), r.in(states[i].grad), i % 2 == 0});
    }
    r.ops().adamw({tensors, kRule, scalars(r, true)});
    const double tolerance = dtype == DType::f32 ? 4e-7 : 1e-15;
    for (size_t i = 0; i < states.size(); ++i) {
      const State expected = stepped(states[i], tensors[i].decay);
      EXPECT_LT(relative_error(r.get(tensors[i].master), expected.master), tolerance);
      EXPECT_LT(relative_error(r.get(tensors[i].m), expected.m), tolerance);
      EXPECT_LT(relative_error(r.get(tensors[i].v), expected.v), tolerance);
    }
  }
}

TEST(Adamw, ParameterIsTheMasterRounded) {
  Runner r(test_ops(), DType::f32);
  const State s(100);
  const Tensor param = r.out({100}), master = r.in(s.master);
  const AdamwTensor tensor{param, master, r.in(s.m), r.in(s.v), r.in(s.grad), true};
  r.ops().adamw({{&tensor, 1}, kRule, scalars(r, true)});
  EXPECT_EQ(relative_error(r.get(param), r.get(master)), 0.0);
}

TEST(Adamw, ASkippedStepChangesNothing) {
  Runner r(test_ops(), DType::f32);
  const State s(100);
  const Tensor master = r.in(s.master), m = r.in(s.m), v = r.in(s.v);
  const Array before = r.get(master), m_before = r.get(m), v_before = r.get(v);
  const AdamwTensor tensor{master, master, m, v, r.in(s.grad), true};
  r.ops().adamw({{&tensor, 1}, kRule, scalars(r, false)});
  EXPECT_EQ(relative_error(r.get(master), before), 0.0);
  EXPECT_EQ(relative_error(r.get(m), m_before), 0.0);
  EXPECT_EQ(relative_error(r.get(v), v_before), 0.0);
}

TEST(CheckStep, AppliesWhatIsFiniteAndWithinItsLimits) {
  constexpr double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  struct Case {
    double loss_sum, count, squares, clip, max_loss, max_norm;
    bool applied;
    double scale;
  };
  // Loss 3, norm 2.
  const std::vector<Case> cases{
      {30, 10, 4, 0, inf, inf, true, 1},    {30, 10, 4, 1, inf, inf, true, 0.5},  {30, 10, 4, 2, inf, inf, true, 1},
      {30, 10, 4, 1, 3, 2, true, 0.5},      {30, 10, 4, 1, 2.9, inf, false, 0.5}, {30, 10, 4, 1, inf, 1.9, false, 0.5},
      {nan, 10, 4, 0, inf, inf, false, 1},  {inf, 10, 4, 0, inf, inf, false, 1},  {-inf, 10, 4, 0, inf, inf, false, 1},
      {30, 10, nan, 0, inf, inf, false, 1}, {30, 10, inf, 0, inf, inf, false, 1}, {0, 0, 0, 1, inf, inf, false, 1},
      {30, 10, inf, 1, inf, inf, false, 0}};
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    Runner r(test_ops(), DType::f32);
    const Array sums = array_of(StepSums{c.loss_sum, c.count, c.squares});
    const Array limits = array_of(StepLimits{c.clip, c.max_loss, c.max_norm});
    const Tensor step = scalars(r, !c.applied);
    r.ops().check_step({step, r.make(sums, DType::f64), r.make(limits, DType::f64)});
    Array checked = r.get(step);
    const StepScalars& result = *scalars_in<StepScalars>(Tensor(checked.data.data(), {checked.numel()}, DType::f64));
    EXPECT_EQ(result.applied, c.applied ? 1 : 0) << "case " << i;
    EXPECT_EQ(result.grad_scale, c.scale) << "case " << i;
    EXPECT_EQ(result.lr, kStepLr) << "case " << i;
  }
}

TEST(Adamw, RefusesAGradientOfAnotherSize) {
  Runner r(test_ops(), DType::f32);
  const State s(10);
  const Tensor master = r.in(s.master);
  const AdamwTensor tensor{master, master, r.in(s.m), r.in(s.v), r.in(Array({9})), true};
  EXPECT_THROW(r.ops().adamw({{&tensor, 1}, kRule, scalars(r, true)}), Error);
}

}  // namespace
}  // namespace tmamba::test
