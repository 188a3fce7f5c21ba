// Attention on the GPU against the CPU in float64, and against a plain evaluation in bfloat16.
#include <cmath>

#include "kernels/cuda/common/hopper.h"
#include "tests/kernels/cuda/cuda_tools.h"

namespace tmamba::test {
namespace {

struct AttentionCase {
  int64_t B, T, S, H, D, q_begin;
  Array q, k, v, d_o, dk_start, dv_start;

  AttentionCase(int64_t B_in, int64_t T_in, int64_t S_in, int64_t H_in, int64_t D_in, int64_t begin)
      : B(B_in), T(T_in), S(S_in), H(H_in), D(D_in), q_begin(begin) {
    Inputs inputs(21);
    q = inputs.bf16({B, T, H, D}, -2, 2), k = inputs.bf16({B, S, H, D}, -2, 2), v = inputs.bf16({B, S, H, D});
    d_o = inputs.bf16({B, T, H, D});
    // The initial dk and dv, to which gradients are added: small, so that rounding the sums hides no error.
    dk_start = inputs.bf16({B, S, H, D}, -0.01, 0.01), dv_start = inputs.bf16({B, S, H, D}, -0.01, 0.01);
  }

  std::string name() const {
    return str("attention B ", B, " T ", T, " S ", S, " H ", H, " D ", D, " q_begin ", q_begin);
  }
  double scale() const { return 1 / std::sqrt(static_cast<double>(D)); }

  void run(Tensors& t) const {
    const Tensor o = t.out({B, T, H, D}), lse = t.out_acc({B, T, H}), dq = t.out({B, T, H, D});
    const Tensor dk = t.in(dk_start), dv = t.in(dv_start);
    const Tensor q_in = t.in(q), k_in = t.in(k), v_in = t.in(v);
    t.ops().attention_forward({o, lse, q_in, k_in, v_in, q_begin, scale()});
    t.ops().attention_backward({dq, dk, dv, t.in(d_o), o, lse, q_in, k_in, v_in, q_begin, scale()});
    t.result("o", o), t.result("lse", lse), t.result("dq", dq), t.result("dk", dk), t.result("dv", dv);
  }

  // A plain evaluation that rounds each intermediate matrix to bfloat16.
  Arrays plain() const {
    Arrays out{{"o", Array({B, T, H, D})},
               {"lse", Array({B, T, H})},
               {"dq", Array({B, T, H, D})},
               {"dk", dk_start},
               {"dv", dv_start}};
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t h = 0; h < H; ++h) {
        Array dk({S, D}), dv({S, D});
        for (int64_t t = 0; t < T; ++t) plain_query(out, dk, dv, b, t, h);
        for (int64_t s = 0; s < S; ++s) {
          for (int64_t c = 0; c < D; ++c) {
            out["dk"](b, s, h, c) = round_bf16(out["dk"](b, s, h, c) + round_bf16(dk(s, c)));
            out["dv"](b, s, h, c) = round_bf16(out["dv"](b, s, h, c) + round_bf16(dv(s, c)));
          }
        }
      }
    }
    return out;
  }

  void plain_query(Arrays& out, Array& dk, Array& dv, int64_t b, int64_t t, int64_t h) const {
    const int64_t count = q_begin + t + 1;
    std::vector<double> score(static_cast<size_t>(count));
    double max = -1e300, sum = 0, delta = 0;
    const auto product = [&](const Array& x, int64_t x_row, const Array& y, int64_t y_row) {
      double total = 0;
      for (int64_t c = 0; c < D; ++c) total += x(b, x_row, h, c) * y(b, y_row, h, c);
      return total;
    };
    for (int64_t s = 0; s < count; ++s) {
      score[static_cast<size_t>(s)] = round_bf16(product(q, t, k, s)) * scale();
      max = std::max(max, score[static_cast<size_t>(s)]);
    }
    for (double x : score) sum += std::exp(x - max);
    out["lse"](b, t, h) = max + std::log(sum);
    Array o({D});
    for (int64_t s = 0; s < count; ++s) {
      const double p = round_bf16(std::exp(score[static_cast<size_t>(s)] - max) / sum);
      for (int64_t c = 0; c < D; ++c) o(c) += p * v(b, s, h, c);
    }
    for (int64_t c = 0; c < D; ++c) {
      out["o"](b, t, h, c) = round_bf16(o(c));
      delta += out["o"](b, t, h, c) * d_o(b, t, h, c);
    }
    Array dq({D});
    for (int64_t s = 0; s < count; ++s) {
      const double p = round_bf16(std::exp(score[static_cast<size_t>(s)] - max) / sum);
      const double ds = round_bf16(p * (round_bf16(product(d_o, t, v, s)) - delta));
      for (int64_t c = 0; c < D; ++c) {
        dq(c) += ds * k(b, s, h, c) * scale();
        dk(s, c) += ds * q(b, t, h, c) * scale();
        dv(s, c) += p * d_o(b, t, h, c);
      }
    }
    for (int64_t c = 0; c < D; ++c) out["dq"](b, t, h, c) = round_bf16(dq(c));
  }
};

void check_cases() {
  for (const AttentionCase& c :
       {AttentionCase(1, 1, 1, 1, 64, 0), AttentionCase(2, 45, 60, 3, 64, 10), AttentionCase(1, 257, 257, 2, 96, 0),
        AttentionCase(1, 130, 300, 2, 96, 127), AttentionCase(2, 200, 200, 2, 128, 0),
        AttentionCase(1, 33, 290, 2, 128, 250), AttentionCase(1, 600, 600, 1, 96, 0),
        AttentionCase(1, 300, 300, 2, 64, 0), AttentionCase(1, 70, 70, 2, 24, 0), AttentionCase(1, 3, 3, 1, 2, 0),
        AttentionCase(1, 64, 128, 2, 96, 64)}) {
    if (too_large(c.T * c.S)) continue;
    check_body({.name = c.name(), .plain = [&] { return c.plain(); }, .f32_units = 256}, [&](Tensors& t) { c.run(t); });
  }
}

TEST(CudaAttention, ForwardAndBackward) { check_cases(); }

// On a Hopper GPU, tests the portable kernels too.
TEST(CudaAttention, PortableKernels) {
  cuda::allow_wgmma(false);
  check_cases();
  cuda::allow_wgmma(true);
}

TEST(CudaAttention, WideHeads) {
  const AttentionCase c(1, 65, 70, 1, 256, 3);
  check_body({.name = c.name(), .plain = [&] { return c.plain(); }, .types = {DType::bf16, DType::f32}},
             [&](Tensors& t) { c.run(t); });
  Tensors t(gpu(), DType::f64, 0);
  EXPECT_THROW(c.run(t), Error) << "float64 heads of 256 channels do not fit in shared memory";
  Tensors odd(gpu(), DType::f32, 0);
  EXPECT_THROW(AttentionCase(1, 4, 4, 1, 7, 0).run(odd), Error) << "odd head width";
}

TEST(CudaAttention, KeysAfterTheQueriesAreNotReadAndGetNoGradient) {
  for (int64_t D : {24, 96}) {
    AttentionCase c(2, 20, 150, 2, D, 7);
    for (DType dtype : {DType::bf16, DType::f32}) {
      Tensors clean(gpu(), dtype, 0), poisoned(gpu(), dtype, 0);
      c.run(clean);
      AttentionCase bad = c;
      for (Array* x : {&bad.k, &bad.v}) {
        for (int64_t b = 0; b < 2; ++b) {
          for (int64_t s = 27; s < c.S; ++s) (*x)(b, s, 0, 3) = std::nan("");
        }
      }
      bad.run(poisoned);
      const auto expected = clean.results(), got = poisoned.results();
      for (const auto& [name, x] : expected) {
        EXPECT_EQ(relative_error(got.at(name).array, x.array), 0.0) << name << " " << name_of(dtype) << " D " << D;
      }
      EXPECT_EQ(relative_error(got.at("dk").array.slice(1, 27, 123), c.dk_start.slice(1, 27, 123)) < 0.01, true);
    }
  }
}

TEST(CudaAttention, LargeScores) {
  AttentionCase c(1, 200, 200, 1, 64, 0);
  for (double& x : c.q.data) x *= 256;
  check_body({.name = "attention of large scores", .plain = [&] { return c.plain(); }, .f32_units = 1 << 15},
             [&](Tensors& t) { c.run(t); });
}

TEST(CudaAttention, NothingToDo) {
  for (DType dtype : {DType::bf16, DType::f32}) {
    Tensors t(gpu(), dtype, 0);
    AttentionCase(2, 0, 10, 1, 64, 3).run(t);
    EXPECT_EQ(t.results().at("o").array.numel(), 0);
  }
}

}  // namespace
}  // namespace tmamba::test
