#include <cmath>

#include "kernels/cpu/attention_tiles.h"
#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct AttentionCase : OpCase {
  int64_t B, T, S, H, D, q_begin;
  double scale;

  AttentionCase(int64_t B_in, int64_t T_in, int64_t S_in, int64_t H_in, int64_t D_in, int64_t begin,
                uint64_t seed_in = 7)
      : B(B_in), T(T_in), S(S_in), H(H_in), D(D_in), q_begin(begin), scale(1 / std::sqrt(static_cast<double>(D_in))) {
    name = str("attention B ", B, " T ", T, " S ", S, " H ", H, " D ", D, " q_begin ", q_begin);
    seed = seed_in;
    Random random(seed);
    in["q"] = random.uniform({B, T, H, D}, -2, 2);
    in["k"] = random.uniform({B, S, H, D}, -2, 2);
    in["v"] = random.uniform({B, S, H, D});
    in["grad_o"] = random.uniform({B, T, H, D});
  }

  Arrays run(Runner& r) const override {
    const Tensor q = r.in(in.at("q")), k = r.in(in.at("k")), v = r.in(in.at("v")), d_o = r.in(in.at("grad_o"));
    const Tensor o = r.out({B, T, H, D}), lse = r.out_acc({B, T, H});
    const Tensor dq = r.out({B, T, H, D}), dk = r.added({B, S, H, D}), dv = r.added({B, S, H, D});
    r.ops().attention_forward({o, lse, q, k, v, q_begin, scale});
    r.ops().attention_backward({dq, dk, dv, d_o, o, lse, q, k, v, q_begin, scale});
    return {{"o", r.get(o)}, {"lse", r.get(lse)}, {"dq", r.get(dq)}, {"dk", r.get_added(dk)}, {"dv", r.get_added(dv)}};
  }

  Arrays reference() const override {
    const Array &q = in.at("q"), &k = in.at("k"), &v = in.at("v");
    Array o({B, T, H, D}), lse({B, T, H});
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t h = 0; h < H; ++h) {
        for (int64_t t = 0; t < T; ++t) {
          double sum = 0;
          for (int64_t s = 0; s <= q_begin + t; ++s) {
            double score = 0;
            for (int64_t c = 0; c < D; ++c) score += q(b, t, h, c) * k(b, s, h, c);
            const double p = std::exp(score * scale);
            sum += p;
            for (int64_t c = 0; c < D; ++c) o(b, t, h, c) += p * v(b, s, h, c);
          }
          for (int64_t c = 0; c < D; ++c) o(b, t, h, c) /= sum;
          lse(b, t, h) = std::log(sum);
        }
      }
    }
    return {{"o", o}, {"lse", lse}};
  }

  // The queries [begin, begin + count) of this case over the same keys.
  AttentionCase queries(int64_t begin, int64_t count) const {
    AttentionCase part(B, count, S, H, D, q_begin + begin, seed);
    part.in = in;
    part.in["q"] = in.at("q").slice(1, begin, count);
    part.in["grad_o"] = in.at("grad_o").slice(1, begin, count);
    return part;
  }
};

std::vector<AttentionCase> cases() {
  return {{1, 1, 1, 1, 8, 0},      {3, 1, 5, 2, 24, 4},     {2, 45, 45, 3, 8, 0},     {1, 45, 60, 2, 24, 10},
          {1, 257, 257, 1, 96, 0}, {1, 33, 290, 2, 8, 250}, {2, 130, 257, 1, 24, 127}};
}

TEST(Attention, MatchesPlainLoops) {
  for (const AttentionCase& c : cases()) check_reference(c);
}

TEST(Attention, GradientsMatchFiniteDifferences) {
  for (AttentionCase& c : cases()) check_gradients(c);
}

TEST(Attention, TypesLayoutsAndThreads) {
  for (const AttentionCase& c : cases()) check_variants(c, 64);
}

TEST(Attention, KeysAfterTheQueriesAreNotReadAndGetNoGradient) {
  AttentionCase c(2, 20, 50, 2, 8, 7);
  const Arrays clean = run(c, DType::f64);
  for (const char* key : {"k", "v"}) {
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t s = 27; s < c.S; ++s) {
        for (int64_t h = 0; h < c.H; ++h) c.in[key](b, s, h, 3) = std::nan("");
      }
    }
  }
  const Arrays poisoned = run(c, DType::f64);
  expect_same_bits(poisoned, clean, "attention with NaN after the queries");
  EXPECT_EQ(norm(clean.at("dk").slice(1, 27, 23)), 0.0);
  EXPECT_GT(norm(clean.at("dk").slice(1, 26, 1)), 0.0);
}

// A key that a query does not see must not reach it, even through a tile they share.
TEST(Attention, LaterKeysOfTheSameTileDoNotLeak) {
  AttentionCase c(1, 40, 40, 1, 8, 0);
  const Array clean = run(c, DType::f32).at("o");
  for (int64_t s = 20; s < 40; ++s) c.in["k"](0, s, 0, 0) = 1e30;
  const Array changed = run(c, DType::f32).at("o");
  EXPECT_EQ(relative_error(changed.slice(1, 0, 20), clean.slice(1, 0, 20)), 0.0);
  EXPECT_GT(relative_error(changed.slice(1, 20, 20), clean.slice(1, 20, 20)), 0.01);
}

TEST(Attention, QueriesSplitAtTilesGiveTheSameBits) {
  const AttentionCase whole(2, 3 * kQueryTile + 17, 3 * kQueryTile + 17, 2, 24, 0);
  for (DType dtype : {DType::f32, DType::f64}) {
    const Arrays all = run(whole, dtype);
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
             {0, kQueryTile}, {kQueryTile, 3 * kQueryTile}, {2 * kQueryTile, whole.T}}) {
      const Arrays part = run(whole.queries(begin, end - begin), dtype);
      for (const char* output : {"o", "lse", "dq"}) {
        expect_same_bits({{output, part.at(output)}}, {{output, all.at(output).slice(1, begin, end - begin)}},
                         str("queries ", begin, " .. ", end, " ", name_of(dtype)));
      }
    }
  }
}

TEST(Attention, QueriesSplitAnywhereAddUpToTheWhole) {
  const AttentionCase whole(1, 200, 200, 2, 8, 0);
  const Arrays all = run(whole, DType::f64), head = run(whole.queries(0, 77), DType::f64),
               tail = run(whole.queries(77, 123), DType::f64);
  EXPECT_LT(relative_error(tail.at("o"), all.at("o").slice(1, 77, 123)), 1e-13);
  EXPECT_LT(relative_error(tail.at("dq"), all.at("dq").slice(1, 77, 123)), 1e-13);
  for (const char* output : {"dk", "dv"}) {
    Array sum = head.at(output);
    for (size_t i = 0; i < sum.data.size(); ++i) sum.data[i] += tail.at(output).data[i];
    EXPECT_LT(relative_error(sum, all.at(output)), 1e-13) << output;
  }
}

// Scores of +-1e3 overflow a softmax that does not subtract the maximum.
TEST(Attention, LargeScores) {
  AttentionCase c(1, 60, 60, 1, 8, 0);
  for (double& x : c.in["q"].data) x *= 300;
  const Arrays got = run(c, DType::f32);
  const Arrays exact = run(c, DType::f64);
  for (const auto& [output, x] : exact) EXPECT_LT(relative_error(got.at(output), x), 1e-2) << output;
}

TEST(Attention, NoQueries) {
  AttentionCase c(2, 0, 10, 1, 8, 3);
  EXPECT_EQ(norm(run(c, DType::f32).at("dk")), 0.0);
}

TEST(Attention, RefusesQueriesWithoutKeys) {
  AttentionCase c(1, 4, 8, 1, 8, 5);
  EXPECT_THROW(run(c, DType::f64), Error);
}

}  // namespace
}  // namespace tmamba::test
