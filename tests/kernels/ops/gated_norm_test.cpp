#include <cmath>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct GatedNormCase : OpCase {
  int64_t B, T, H, D;
  static constexpr double kEps = 1e-3;

  GatedNormCase(int64_t B_in, int64_t T_in, int64_t H_in, int64_t D_in) : B(B_in), T(T_in), H(H_in), D(D_in) {
    name = str("gated_norm B ", B, " T ", T, " H ", H, " D ", D);
    seed = 4;
    Random random(seed);
    in["y"] = random.uniform({B, T, H, D});
    in["z"] = random.uniform({B, T, H, D}, -3, 3);
    in["w"] = random.uniform({H, D}, 0.5, 1.5);
    in["grad_out"] = random.uniform({B, T, H, D});
  }

  Arrays run(Runner& r) const override {
    const Tensor y = r.in(in.at("y")), z = r.in(in.at("z")), w = r.in(in.at("w")), dout = r.in(in.at("grad_out"));
    const std::vector<int64_t> sizes{B, T, H, D};
    const Tensor out = r.out(sizes), rstd = r.out_acc({B, T, H}), dy = r.out(sizes), dz = r.out(sizes);
    const Tensor dw = r.added_acc({H, D}), dw_again = r.added_acc({H, D}), dz_again = r.out(sizes);
    r.ops().gated_norm_forward({out, rstd, y, z, w, kEps});
    r.ops().gated_norm_backward({dy, dz, dw, dout, y, z, rstd, w});
    // Again, with dy in place over dout.
    r.ops().gated_norm_backward({dout, dz_again, dw_again, dout, y, z, rstd, w});
    EXPECT_EQ(relative_error(r.get(dout), r.get(dy)), 0.0) << "dy in place";
    return {{"out", r.get(out)}, {"rstd", r.get(rstd)}, {"dy", r.get(dy)}, {"dz", r.get(dz)}, {"dw", r.get_added(dw)}};
  }

  Arrays reference() const override {
    Array out({B, T, H, D}), rstd({B, T, H});
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t h = 0; h < H; ++h) {
          double squares = 0;
          for (int64_t i = 0; i < D; ++i) {
            out(b, t, h, i) = in.at("y")(b, t, h, i) * silu(in.at("z")(b, t, h, i));
            squares += out(b, t, h, i) * out(b, t, h, i);
          }
          rstd(b, t, h) = 1 / std::sqrt(squares / static_cast<double>(D) + kEps);
          for (int64_t i = 0; i < D; ++i) out(b, t, h, i) *= rstd(b, t, h) * in.at("w")(h, i);
        }
      }
    }
    return {{"out", out}, {"rstd", rstd}};
  }
};

std::vector<GatedNormCase> cases() { return {{1, 1, 1, 8}, {3, 45, 2, 24}, {2, 257, 1, 96}, {1, 33, 5, 7}}; }

TEST(GatedNorm, MatchesPlainLoops) {
  for (const GatedNormCase& c : cases()) check_reference(c);
}

TEST(GatedNorm, GradientsMatchFiniteDifferences) {
  for (GatedNormCase& c : cases()) check_gradients(c);
}

TEST(GatedNorm, TypesLayoutsAndThreads) {
  for (const GatedNormCase& c : cases()) check_variants(c, 32);
}

TEST(GatedNorm, NoTokens) { EXPECT_EQ(norm(run(GatedNormCase(2, 0, 2, 8), DType::f32).at("dw")), 0.0); }

}  // namespace
}  // namespace tmamba::test
