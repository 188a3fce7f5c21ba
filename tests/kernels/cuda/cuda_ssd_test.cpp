// The SSM scan on the GPU against the CPU in float64, and against a plain evaluation of the recurrence in bfloat16.
#include <cmath>

#include "kernels/cuda/common/hopper.h"
#include "tests/kernels/cuda/cuda_tools.h"

namespace tmamba::test {
namespace {

struct SsdCase {
  int64_t B, T, H, K, D;
  bool outputs, initial, accumulate;
  Array q, k, v, dt, log_a, skip, initial_state, dy, dfinal, dv_start;

  SsdCase(int64_t B_in, int64_t T_in, int64_t H_in, int64_t K_in, int64_t D_in, bool outputs_in = true,
          bool initial_in = true, bool accumulate_in = false)
      : B(B_in),
        T(T_in),
        H(H_in),
        K(K_in),
        D(D_in),
        outputs(outputs_in),
        initial(initial_in),
        accumulate(accumulate_in) {
    Inputs inputs(31);
    k = inputs.bf16({B, T, H, K}), v = inputs.bf16({B, T, H, D});
    dt = inputs.f32({B, T, H}, 0.01, 1), log_a = inputs.f32({B, T, H}, -0.5, -0.001);
    dfinal = inputs.f32({B, H, K, D});
    if (initial) initial_state = inputs.f32({B, H, K, D});
    dv_start = inputs.bf16({B, T, H, D}, -0.01, 0.01);
    if (!outputs) return;
    q = inputs.bf16({B, T, H, K}), skip = inputs.bf16({H}), dy = inputs.bf16({B, T, H, D});
  }

  std::string name() const {
    return str("ssd B ", B, " T ", T, " H ", H, " K ", K, " D ", D, outputs ? "" : " converter",
               initial ? "" : " from zero", accumulate ? " accumulating" : "");
  }

  void run(Tensors& t) const {
    const Tensor q_in = t.in(q), k_in = t.in(k), v_in = t.in(v), dt_in = t.in_acc(dt), log_a_in = t.in_acc(log_a);
    const Tensor skip_in = t.in(skip), initial_in = t.in_acc(initial_state), dfinal_in = t.in_acc(dfinal);
    const std::vector<int64_t> state{B, H, K, D};
    Tensor y, dq, dskip;
    if (outputs) y = t.out({B, T, H, D}), dq = t.out({B, T, H, K}), dskip = t.in_acc(Array({H}, 0.25));
    const Tensor final_state = t.out_acc(state), log_decay = t.out_acc({B, H}), dinitial = t.out_acc(state);
    const Tensor dk = t.out({B, T, H, K}), dv = accumulate ? t.in(dv_start) : t.out({B, T, H, D});
    const Tensor ddt = t.out_acc({B, T, H}), dlog_a = t.out_acc({B, T, H});
    t.ops().ssd_forward({y, final_state, log_decay, q_in, k_in, v_in, dt_in, log_a_in, skip_in, initial_in, 64});
    t.ops().ssd_backward({dq, dk, dv, ddt, dlog_a, dskip, dinitial, t.in(dy), dfinal_in, q_in, k_in, v_in, dt_in,
                          log_a_in, skip_in, initial_in, 64, accumulate});
    t.result("final_state", final_state), t.result("log_decay", log_decay), t.result("dinitial", dinitial);
    t.result("dk", dk), t.result("dv", dv), t.result("ddt", ddt), t.result("dlog_a", dlog_a);
    if (!outputs) return;
    t.result("y", y), t.result("dq", dq), t.result("dD", dskip);
    const Tensor adjoint = t.out_acc(state), decay = t.out_acc({B, H});
    t.ops().ssd_adjoint({adjoint, decay, q_in, t.in(dy), log_a_in, 64});
    t.result("adjoint", adjoint), t.result("adjoint_decay", decay);
  }

  // Evaluates the recurrence token by token; operands of products are rounded to bfloat16, states are not.
  Arrays plain() const {
    Arrays out{{"final_state", Array({B, H, K, D})}, {"dinitial", Array({B, H, K, D})}, {"dk", Array({B, T, H, K})},
               {"dv", Array({B, T, H, D})},          {"ddt", Array({B, T, H})},         {"dlog_a", Array({B, T, H})}};
    if (outputs) {
      out["y"] = Array({B, T, H, D}), out["dq"] = Array({B, T, H, K}), out["adjoint"] = Array({B, H, K, D});
    }
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t h = 0; h < H; ++h) plain_head(out, b, h);
    }
    if (accumulate) {
      for (size_t i = 0; i < dv_start.data.size(); ++i)
        out["dv"].data[i] = round_bf16(out["dv"].data[i] + dv_start.data[i]);
    }
    return out;
  }

  void plain_head(Arrays& out, int64_t b, int64_t h) const {
    const auto size = static_cast<size_t>(K * D), width = static_cast<size_t>(D);
    std::vector<std::vector<double>> before;  // the state before each token
    std::vector<double> S(size), G(size), A(size);
    const auto at = [&](int64_t i, int64_t c) { return static_cast<size_t>(i) * width + static_cast<size_t>(c); };
    for (int64_t i = 0; i < K; ++i) {
      for (int64_t c = 0; c < D; ++c) {
        if (initial) S[at(i, c)] = initial_state(b, h, i, c);
        G[at(i, c)] = dfinal(b, h, i, c);
      }
    }
    for (int64_t t = 0; t < T; ++t) {
      before.push_back(S);
      const double a = std::exp(log_a(b, t, h));
      for (int64_t i = 0; i < K; ++i) {
        for (int64_t c = 0; c < D; ++c)
          S[at(i, c)] = a * S[at(i, c)] + k(b, t, h, i) * round_bf16(dt(b, t, h) * v(b, t, h, c));
      }
      for (int64_t c = 0; outputs && c < D; ++c) {
        double y = skip(h) * v(b, t, h, c);
        for (int64_t i = 0; i < K; ++i) y += round_bf16(S[at(i, c)]) * q(b, t, h, i);
        out["y"](b, t, h, c) = round_bf16(y);
      }
    }
    for (int64_t i = 0; i < K; ++i) {
      for (int64_t c = 0; c < D; ++c) out["final_state"](b, h, i, c) = S[at(i, c)];
    }
    for (int64_t t = T - 1; t >= 0; --t) {
      plain_token_backward(out, b, t, h, before[static_cast<size_t>(t)],
                           t + 1 < T ? before[static_cast<size_t>(t + 1)] : S, G);
      const double a = std::exp(log_a(b, t, h));
      for (int64_t i = 0; outputs && i < K; ++i) {
        for (int64_t c = 0; c < D; ++c) A[at(i, c)] = a * A[at(i, c)] + round_bf16(a * q(b, t, h, i)) * dy(b, t, h, c);
      }
    }
    for (int64_t i = 0; i < K; ++i) {
      for (int64_t c = 0; c < D; ++c) {
        out["dinitial"](b, h, i, c) = G[at(i, c)];
        if (outputs) out["adjoint"](b, h, i, c) = A[at(i, c)];
      }
    }
  }

  // G: in: the gradient after the token; out: before it.
  void plain_token_backward(Arrays& out, int64_t b, int64_t t, int64_t h, const std::vector<double>& before,
                            const std::vector<double>& S, std::vector<double>& G) const {
    const double a = std::exp(log_a(b, t, h));
    const auto at = [&](int64_t i, int64_t c) { return static_cast<size_t>(i * D + c); };
    std::vector<double> u(static_cast<size_t>(D));
    std::vector<double> after(G.size());  // with this token's output
    double through = 0, ddt = 0;
    for (int64_t i = 0; i < K; ++i) {
      double dq = 0, dk = 0;
      for (int64_t c = 0; c < D; ++c) {
        double g = G[at(i, c)];
        if (outputs) g += q(b, t, h, i) * dy(b, t, h, c), dq += round_bf16(S[at(i, c)]) * dy(b, t, h, c);
        after[at(i, c)] = g;
        through += round_bf16(g) * round_bf16(before[at(i, c)]);
        dk += round_bf16(g) * round_bf16(dt(b, t, h) * v(b, t, h, c));
        u[static_cast<size_t>(c)] += round_bf16(g) * k(b, t, h, i);
      }
      if (outputs) out["dq"](b, t, h, i) = round_bf16(dq);
      out["dk"](b, t, h, i) = round_bf16(dk);
    }
    for (int64_t c = 0; c < D; ++c) {
      const double value = u[static_cast<size_t>(c)];
      ddt += value * v(b, t, h, c);
      out["dv"](b, t, h, c) = round_bf16(value * dt(b, t, h) + (outputs ? skip(h) * dy(b, t, h, c) : 0.0));
    }
    out["ddt"](b, t, h) = ddt, out["dlog_a"](b, t, h) = a * through;
    for (int64_t i = 0; i < K; ++i) {
      const double q_i = outputs ? round_bf16(a * q(b, t, h, i)) : 0.0;
      for (int64_t c = 0; c < D; ++c) G[at(i, c)] = a * G[at(i, c)] + (outputs ? q_i * dy(b, t, h, c) : 0.0);
    }
  }
};

void check_case(const SsdCase& c, double f32_units = 256) {
  if (too_large(c.T * c.T)) return;
  check_body({.name = c.name(), .plain = [&] { return c.plain(); }, .f32_units = f32_units},
             [&](Tensors& t) { c.run(t); });
}

void check_cases() {
  for (const SsdCase& c :
       {SsdCase(1, 1, 1, 96, 96), SsdCase(2, 100, 2, 64, 64), SsdCase(1, 257, 3, 96, 96), SsdCase(1, 300, 2, 128, 128),
        SsdCase(2, 64, 1, 96, 96), SsdCase(1, 65, 1, 64, 64), SsdCase(1, 45, 2, 8, 24), SsdCase(1, 100, 1, 24, 8),
        SsdCase(2, 33, 3, 10, 10), SsdCase(1, 90, 1, 128, 128)}) {
    check_case(c);
  }
}

TEST(CudaSsd, ForwardAndBackward) { check_cases(); }

// On a Hopper GPU, tests the portable kernels too.
TEST(CudaSsd, PortableKernels) {
  cuda::allow_wgmma(false);
  check_cases();
  check_case(SsdCase(1, 90, 2, 96, 96, false));
  check_case(SsdCase(1, 90, 2, 96, 96, true, true, true));
  cuda::allow_wgmma(true);
}

TEST(CudaSsd, FromZero) {
  check_case(SsdCase(1, 130, 2, 96, 96, true, false));
  check_case(SsdCase(1, 70, 2, 16, 24, true, false));
}

TEST(CudaSsd, Converter) {
  for (const SsdCase& c : {SsdCase(1, 1, 1, 64, 64, false), SsdCase(2, 200, 2, 96, 96, false, false),
                           SsdCase(1, 130, 2, 128, 128, false), SsdCase(1, 70, 2, 16, 24, false)}) {
    check_case(c);
  }
}

TEST(CudaSsd, AccumulatesValueGradients) {
  check_case(SsdCase(1, 130, 2, 96, 96, true, true, true));
  check_case(SsdCase(1, 130, 2, 64, 64, false, true, true));
  check_case(SsdCase(1, 45, 2, 8, 24, true, true, true));
}

// Enough heads and tokens for several chunks per segment, in both families of tensor-core kernels.
TEST(CudaSsd, SegmentsOfSeveralChunks) {
  check_case(SsdCase(2, 586, 32, 64, 64), 512);
  check_case(SsdCase(4, 140, 64, 8, 8), 512);
}

// Segments with more chunks than pipeline stages, and more chunks than the GPU has SMs. Compared with float32 on the
// same GPU, because the CPU would take too long.
TEST(CudaSsd, ManyChunks) {
  for (const SsdCase& c : {SsdCase(2, 497, 66, 96, 96), SsdCase(1, 70, 67, 128, 128)}) {
    Tensors fast(gpu(), DType::bf16, 0), exact(gpu(), DType::f32, 0);
    c.run(fast), c.run(exact);
    const auto got = fast.results(), expected = exact.results();
    for (const auto& [name, x] : expected) {
      EXPECT_LE(relative_error(got.at(name).array, x.array), 0.01) << c.name() << ": " << name;
    }
  }
}

// Decays from "forget everything" to "forget nothing": masked elements would overflow if they were computed.
TEST(CudaSsd, ExtremeDecays) {
  for (int64_t D : {96, 8}) {
    for (double low : {-80.0, -1e4}) {
      SsdCase c(1, 130, 2, D, D);
      for (size_t i = 0; i < c.log_a.data.size(); ++i) c.log_a.data[i] = i % 3 == 0 ? low : 0.0;
      check_case(c);
    }
  }
}

TEST(CudaSsd, StatesInPlace) {
  for (int64_t D : {96, 8}) {
    const SsdCase c(1, 257, 1, D, D);
    for (DType dtype : {DType::bf16, DType::f32}) {
      Tensors alone(gpu(), dtype, 0), t(gpu(), dtype, 2);
      c.run(alone);
      const auto expected = alone.results();
      const Tensor q = t.in(c.q), k = t.in(c.k), v = t.in(c.v), dt = t.in_acc(c.dt), log_a = t.in_acc(c.log_a);
      const Tensor skip = t.in(c.skip), state = t.in_acc(c.initial_state), dstate = t.in_acc(c.dfinal);
      const Tensor initial = t.in_acc(c.initial_state), y = t.out({1, 257, 1, D});
      gpu().ssd_forward({y, state, {}, q, k, v, dt, log_a, skip, state, 64});
      gpu().ssd_backward({t.out({1, 257, 1, D}), t.out({1, 257, 1, D}), t.out({1, 257, 1, D}), t.out_acc({1, 257, 1}),
                          t.out_acc({1, 257, 1}), t.in_acc(Array({1})), dstate, t.in(c.dy), dstate, q, k, v, dt, log_a,
                          skip, initial, 64, false});
      EXPECT_EQ(relative_error(t.read(state), expected.at("final_state").array), 0.0) << name_of(dtype) << " D " << D;
      EXPECT_EQ(relative_error(t.read(y), expected.at("y").array), 0.0) << name_of(dtype) << " D " << D;
      EXPECT_EQ(relative_error(t.read(dstate), expected.at("dinitial").array), 0.0) << name_of(dtype) << " D " << D;
    }
  }
}

TEST(CudaSsd, NoTokens) {
  const SsdCase c(2, 0, 2, 64, 64);
  Tensors t(gpu(), DType::bf16, 0);
  c.run(t);
  const auto out = t.results();
  EXPECT_EQ(relative_error(out.at("final_state").array, c.initial_state), 0.0);
  EXPECT_EQ(relative_error(out.at("dinitial").array, c.dfinal), 0.0);
  EXPECT_EQ(norm(out.at("log_decay").array), 0.0);
  EXPECT_EQ(norm(out.at("adjoint").array), 0.0);
}

TEST(CudaSsd, DecayOverTokensThatAddNothing) {
  for (const std::vector<int64_t>& sizes : std::vector<std::vector<int64_t>>{
           {1, 1, 1, 1, 1}, {2, 3, 100, 96, 96}, {1, 2, 1000, 64, 128}, {3, 2, 7, 5, 3}, {2, 2, 0, 8, 8}}) {
    const int64_t B = sizes[0], H = sizes[1], T = sizes[2], K = sizes[3], D = sizes[4];
    Inputs inputs(37);
    const Array state = inputs.f32({B, H, K, D}), log_a = inputs.f32({B, T, H}, -0.01, 0);
    check_body({.name = str("ssd_decay T ", T, " K ", K, " D ", D)}, [&](Tensors& t) {
      const Tensor decayed = t.in_acc(state);
      t.ops().ssd_decay({decayed, t.in_acc(log_a)});
      t.result("state", decayed);
    });
  }
}

TEST(CudaSsd, SegmentScan) {
  for (const std::vector<int64_t>& sizes : std::vector<std::vector<int64_t>>{
           {1, 1, 1, 1}, {2, 1, 3, 9216}, {7, 2, 3, 257}, {16, 1, 2, 100}, {3, 2, 2, 0}}) {
    const int64_t K = sizes[0], B = sizes[1], H = sizes[2], E = sizes[3];
    Inputs inputs(38);
    const Array in = inputs.f32({K, B, H, E}), decay = inputs.f32({K, B, H}, -2, 0);
    for (bool reverse : {false, true}) {
      check_body({.name = str("segment_scan K ", K, " E ", E, reverse ? " reversed" : "")}, [&](Tensors& t) {
        const Tensor out = t.out_acc({K, B, H, E});
        t.ops().segment_scan({out, t.in_acc(in), t.in_acc(decay), reverse});
        t.result("out", out);
      });
    }
  }
}

}  // namespace
}  // namespace tmamba::test
