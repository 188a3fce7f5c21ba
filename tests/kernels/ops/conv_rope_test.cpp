// The convolution of q, k and v with RoPE on the prefix.
#include "kernels/ops/counting_ops.h"
#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

constexpr double kTheta = 500.0;

struct ConvRopeCase : OpCase {
  int64_t B, T, H, D, W, P, position;
  bool halo, apart;

  ConvRopeCase(int64_t B_in, int64_t T_in, int64_t H_in, int64_t D_in, int64_t W_in, int64_t P_in, int64_t position_in,
               bool halo_in, bool apart_in)
      : B(B_in),
        T(T_in),
        H(H_in),
        D(D_in),
        W(W_in),
        P(P_in),
        position(position_in),
        halo(halo_in),
        apart(apart_in && P_in > 0) {
    name = str("conv_rope B ", B, " T ", T, " H ", H, " D ", D, " W ", W, " P ", P, " from ", position,
               halo ? " with halo" : "", apart ? " keys apart" : "");
    seed = 21;
    Random random(seed);
    const int64_t C = 3 * H * D;
    in["x"] = random.uniform({B, T, C});
    in["w"] = random.uniform({C, W});
    in["b"] = random.uniform({C});
    in["grad_y"] = random.uniform({B, T, C});
    if (halo) in["halo"] = random.uniform({B, W - 1, C});
    if (apart) in["grad_k_rot"] = random.uniform({B, P, H, D});
  }

  Arrays run(Runner& r) const override {
    const int64_t C = 3 * H * D;
    const Tensor x = r.in(in.at("x")), w = r.in(in.at("w")), bias = r.in(in.at("b")), dy = r.in(in.at("grad_y"));
    const Tensor y = r.out({B, T, C}), dx = r.out({B, T, C}), dw = r.added_acc({C, W}), db = r.added_acc({C});
    Tensor before, dbefore, k_rot, dk_rot;
    if (halo) before = r.in(in.at("halo")), dbefore = r.out({B, W - 1, C});
    if (apart) k_rot = r.out({B, P, H, D}), dk_rot = r.in(in.at("grad_k_rot"));
    r.ops().conv_silu_rope_forward({y, k_rot, x, before, w, bias, H, P, position, kTheta});
    r.ops().conv_silu_rope_backward({dx, dbefore, dw, db, dy, dk_rot, x, before, w, bias, H, P, position, kTheta});
    Arrays out{{"y", r.get(y)}, {"dx", r.get(dx)}, {"dw", r.get_added(dw)}, {"db", r.get_added(db)}};
    if (halo) out["dhalo"] = r.get(dbefore);
    if (apart) out["k_rot"] = r.get(k_rot);
    return out;
  }

  double conv(int64_t b, int64_t t, int64_t c) const {
    double pre = in.at("b")(c);
    for (int64_t j = 0; j < W; ++j) {
      const int64_t from = t - (W - 1) + j;
      if (from >= 0) pre += in.at("w")(c, j) * in.at("x")(b, from, c);
      if (from < 0 && halo) pre += in.at("w")(c, j) * in.at("halo")(b, from + W - 1, c);
    }
    return silu(pre);
  }

  Arrays reference() const override {
    const int64_t C = 3 * H * D;
    Array y({B, T, C}), k_rot({B, P, H, D});
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t c = 0; c < C; ++c) {
          const int64_t which = c / (H * D), h = c / D % H, i = c % D, pair = i % (D / 2);
          y(b, t, c) = conv(b, t, c);
          if (t >= P || which == 2) continue;
          const double angle = static_cast<double>(position + t) *
                               std::pow(kTheta, -2.0 * static_cast<double>(pair) / static_cast<double>(D));
          const double partner = conv(b, t, i < D / 2 ? c + D / 2 : c - D / 2);
          const double turned = y(b, t, c) * std::cos(angle) + (i < D / 2 ? -1 : 1) * partner * std::sin(angle);
          if (which == 1 && apart) {
            k_rot(b, t, h, i) = turned;
          } else {
            y(b, t, c) = turned;
          }
        }
      }
    }
    Arrays out{{"y", y}};
    if (apart) out["k_rot"] = k_rot;
    return out;
  }
};

// Prefixes of no token, some, all; keys apart and in place.
std::vector<ConvRopeCase> cases() {
  return {{1, 1, 1, 2, 4, 1, 0, true, true},     {2, 45, 2, 8, 4, 20, 3, true, true},
          {2, 45, 2, 8, 4, 45, 0, false, false}, {1, 130, 1, 24, 4, 129, 700, false, true},
          {2, 9, 3, 4, 2, 0, 0, true, false},    {1, 70, 2, 6, 7, 33, 250, true, false}};
}

TEST(ConvRope, MatchesPlainLoops) {
  for (const ConvRopeCase& c : cases()) check_reference(c, 1e-10);
}

TEST(ConvRope, GradientsMatchFiniteDifferences) {
  for (ConvRopeCase& c : cases()) check_gradients(c);
}

TEST(ConvRope, TypesLayoutsAndThreads) {
  for (const ConvRopeCase& c : cases()) check_variants(c, 32);
}

TEST(ConvRope, CountsBothOps) {
  const auto one = make_counting_ops(Device::cpu), two = make_counting_ops(Device::cpu);
  const ConvRopeCase c(2, 45, 2, 8, 4, 20, 3, true, true);
  const int64_t C = 3 * c.H * c.D;
  const Buffer memory(static_cast<size_t>(c.B * c.T * C) * sizeof(float), Device::cpu);
  const Tensor x = memory.tensor({c.B, c.T, C}, DType::f32);
  const Tensor taps = memory.tensor({C, c.W}, DType::f32), qk = memory.tensor({c.B, c.P, 2 * c.H, c.D}, DType::f32);
  one->conv_silu_rope_forward({x, {}, x, {}, taps, {}, c.H, c.P, 0, kTheta});
  one->conv_silu_rope_backward({x, {}, taps, {}, x, {}, x, {}, taps, {}, c.H, c.P, 0, kTheta});
  two->conv_silu_forward({x, x, {}, taps, {}});
  two->conv_silu_backward({x, {}, taps, {}, x, x, {}, taps, {}});
  two->rope_forward({qk, qk, 0, kTheta});
  two->rope_backward({qk, qk, 0, kTheta});
  EXPECT_EQ(one->counts().elementwise, two->counts().elementwise);
  EXPECT_GT(one->counts().elementwise, 0.0);
}

TEST(ConvRope, RefusesSizesThatDoNotFit) {
  EXPECT_THROW(run(ConvRopeCase(1, 4, 1, 7, 4, 2, 0, false, false), DType::f64), Error);
  EXPECT_THROW(run(ConvRopeCase(1, 4, 1, 8, 4, 5, 0, false, false), DType::f64), Error);
  EXPECT_THROW(run(ConvRopeCase(1, 4, 1, 8, 4, 2, -1, false, false), DType::f64), Error);
  ConvRopeCase wrong(1, 4, 1, 8, 4, 2, 0, false, true);
  Runner r(test_ops(), DType::f64);
  const Tensor x = r.in(wrong.in.at("x")), y = r.out({1, 4, 24}), three = r.out({1, 3, 1, 8});
  EXPECT_THROW(test_ops().conv_silu_rope_forward(
                   {y, three, x, {}, r.in(wrong.in.at("w")), r.in(wrong.in.at("b")), 1, 2, 0, kTheta}),
               Error);
}

}  // namespace
}  // namespace tmamba::test
