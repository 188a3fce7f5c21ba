#include <cmath>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

constexpr AdamwStep kStep{.lr = 0.01,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-3,
                          .weight_decay = 0.1,
                          .bias_correction1 = 0.19,
                          .bias_correction2 = 0.0975,
                          .grad_scale = 0.5};

struct State {
  Array master, m, v, grad;
  explicit State(int64_t n, uint64_t seed = 14) {
    Random random(seed);
    master = random.uniform({n}), m = random.uniform({n}), v = random.uniform({n}, 0, 1), grad = random.uniform({n});
  }
};

State stepped(State s, bool decay) {
  for (int64_t i = 0; i < s.master.numel(); ++i) {
    const double g = s.grad(i) * kStep.grad_scale;
    s.m(i) = kStep.beta1 * s.m(i) + (1 - kStep.beta1) * g;
    s.v(i) = kStep.beta2 * s.v(i) + (1 - kStep.beta2) * g * g;
    const double m = s.m(i) / kStep.bias_correction1, v = s.v(i) / kStep.bias_correction2;
    s.master(i) -= kStep.lr * (m / (std::sqrt(v) + kStep.eps) + (decay ? kStep.weight_decay * s.master(i) : 0));
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
    r.ops().adamw(tensors, kStep);
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
  r.ops().adamw({&tensor, 1}, kStep);
  EXPECT_EQ(relative_error(r.get(param), r.get(master)), 0.0);
}

TEST(Adamw, RefusesAGradientOfAnotherSize) {
  Runner r(test_ops(), DType::f32);
  const State s(10);
  const Tensor master = r.in(s.master);
  const AdamwTensor tensor{master, master, r.in(s.m), r.in(s.v), r.in(Array({9})), true};
  EXPECT_THROW(r.ops().adamw({&tensor, 1}, kStep), Error);
}

}  // namespace
}  // namespace tmamba::test
