#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct ConvCase : OpCase {
  int64_t B, T, C, W;
  bool halo;

  ConvCase(int64_t B_in, int64_t T_in, int64_t C_in, int64_t W_in, bool halo_in)
      : B(B_in), T(T_in), C(C_in), W(W_in), halo(halo_in) {
    name = str("conv B ", B, " T ", T, " C ", C, " W ", W, halo ? " with halo" : "");
    seed = 6;
    Random random(seed);
    in["x"] = random.uniform({B, T, C});
    in["w"] = random.uniform({C, W});
    in["b"] = random.uniform({C});
    in["grad_y"] = random.uniform({B, T, C});
    if (halo) in["halo"] = random.uniform({B, W - 1, C});
  }

  Arrays run(Runner& r) const override {
    const Tensor x = r.in(in.at("x")), w = r.in(in.at("w")), bias = r.in(in.at("b")), dy = r.in(in.at("grad_y"));
    const Tensor y = r.out({B, T, C}), dx = r.out({B, T, C}), dw = r.added_acc({C, W}), db = r.added_acc({C});
    Tensor before, dbefore;
    if (halo) before = r.in(in.at("halo")), dbefore = r.out({B, W - 1, C});
    r.ops().conv_silu_forward({y, x, before, w, bias});
    r.ops().conv_silu_backward({dx, dbefore, dw, db, dy, x, before, w, bias});
    Arrays out{{"y", r.get(y)}, {"dx", r.get(dx)}, {"dw", r.get_added(dw)}, {"db", r.get_added(db)}};
    if (halo) out["dhalo"] = r.get(dbefore);
    return out;
  }

  Arrays reference() const override {
    Array y({B, T, C});
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t c = 0; c < C; ++c) {
          double pre = in.at("b")(c);
          for (int64_t j = 0; j < W; ++j) {
            const int64_t from = t - (W - 1) + j;
            if (from >= 0) pre += in.at("w")(c, j) * in.at("x")(b, from, c);
            if (from < 0 && halo) pre += in.at("w")(c, j) * in.at("halo")(b, from + W - 1, c);
          }
          y(b, t, c) = silu(pre);
        }
      }
    }
    return {{"y", y}};
  }
};

std::vector<ConvCase> cases() {
  return {{1, 1, 8, 4, true},  {2, 2, 24, 4, true},    {3, 45, 24, 4, false}, {1, 257, 300, 4, true},
          {2, 65, 8, 2, true}, {1, 129, 16, 7, false}, {2, 20, 8, 1, false}};
}

TEST(Conv, MatchesPlainLoops) {
  for (const ConvCase& c : cases()) check_reference(c);
}

TEST(Conv, GradientsMatchFiniteDifferences) {
  for (ConvCase& c : cases()) check_gradients(c);
}

TEST(Conv, TypesLayoutsAndThreads) {
  for (const ConvCase& c : cases()) check_variants(c, 32);
}

// Two halves, the second with the first's last rows as halo, are the whole; so are the gradients once the second's
// dhalo is added to the first's last rows.
TEST(Conv, HaloJoinsSegments) {
  const int64_t P = 30, W = 4;
  const ConvCase whole(2, 70, 8, W, false);
  ConvCase head(2, P, 8, W, false), tail(2, 40, 8, W, true);
  for (ConvCase* part : {&head, &tail}) {
    const int64_t begin = part == &head ? 0 : P;
    for (const char* key : {"w", "b"}) part->in[key] = whole.in.at(key);
    for (const char* key : {"x", "grad_y"}) part->in[key] = whole.in.at(key).slice(1, begin, part->T);
  }
  tail.in["halo"] = whole.in.at("x").slice(1, P - (W - 1), W - 1);
  const Arrays all = run(whole, DType::f64), first = run(head, DType::f64), second = run(tail, DType::f64);
  EXPECT_EQ(relative_error(second.at("y"), all.at("y").slice(1, P, 40)), 0.0);
  EXPECT_EQ(relative_error(second.at("dx"), all.at("dx").slice(1, P, 40)), 0.0);
  Array dx = first.at("dx");
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t i = 0; i < W - 1; ++i) {
      for (int64_t c = 0; c < 8; ++c) dx(b, P - (W - 1) + i, c) += second.at("dhalo")(b, i, c);
    }
  }
  EXPECT_LT(relative_error(dx, all.at("dx").slice(1, 0, P)), 1e-14);
}

TEST(Conv, NoTokensGiveNoHaloGradient) {
  const ConvCase c(1, 0, 8, 4, true);
  EXPECT_EQ(norm(run(c, DType::f32).at("dhalo")), 0.0);
}

}  // namespace
}  // namespace tmamba::test
