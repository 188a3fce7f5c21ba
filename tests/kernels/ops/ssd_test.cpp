#include <cmath>

#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

struct SsdCase : OpCase {
  int64_t B, T, H, K, D, chunk;
  bool outputs = true;

  SsdCase(int64_t B_in, int64_t T_in, int64_t H_in, int64_t K_in, int64_t D_in, int64_t chunk_in,
          bool outputs_in = true, bool initial = true)
      : B(B_in), T(T_in), H(H_in), K(K_in), D(D_in), chunk(chunk_in), outputs(outputs_in) {
    name = str("ssd B ", B, " T ", T, " H ", H, " K ", K, " D ", D, " chunk ", chunk, outputs ? "" : " converter",
               initial ? "" : " from zero");
    seed = 11;
    Random random(seed);
    in["k"] = random.uniform({B, T, H, K});
    in["v"] = random.uniform({B, T, H, D});
    in["dt"] = random.uniform({B, T, H}, 0.01, 1);
    in["log_a"] = random.uniform({B, T, H}, -0.5, -0.001);
    in["grad_final_state"] = random.uniform({B, H, K, D});
    if (initial) in["initial_state"] = random.uniform({B, H, K, D});
    if (!outputs) return;
    in["q"] = random.uniform({B, T, H, K});
    in["D"] = random.uniform({H});
    in["grad_y"] = random.uniform({B, T, H, D});
  }

  // An input, or an absent tensor.
  Array input(const std::string& key) const { return in.contains(key) ? in.at(key) : Array(); }

  Arrays run(Runner& r) const override {
    const Tensor q = r.in(input("q")), k = r.in(in.at("k")), v = r.in(in.at("v")), dy = r.in(input("grad_y"));
    const Tensor dt = r.in_acc(in.at("dt")), log_a = r.in_acc(in.at("log_a")), skip = r.in(input("D"));
    const Tensor initial = r.in_acc(input("initial_state")), dfinal = r.in_acc(input("grad_final_state"));
    const std::vector<int64_t> state{B, H, K, D};
    Tensor y, dq, dskip;
    if (outputs) y = r.out({B, T, H, D}), dq = r.out({B, T, H, K}), dskip = r.added_acc({H});
    const Tensor final_state = r.out_acc(state), log_decay = r.out_acc({B, H}), dinitial = r.out_acc(state);
    const Tensor dk = r.out({B, T, H, K}), dv = r.out({B, T, H, D});
    const Tensor ddt = r.out_acc({B, T, H}), dlog_a = r.out_acc({B, T, H});
    r.ops().ssd_forward({y, final_state, log_decay, q, k, v, dt, log_a, skip, initial, chunk});
    r.ops().ssd_backward({.dq_BTHD = dq,
                          .dk_BTHD = dk,
                          .dv_BTHD = dv,
                          .ddt_BTH = ddt,
                          .dlog_a_BTH = dlog_a,
                          .dD_H = dskip,
                          .dinitial_state_BHKD = dinitial,
                          .dy_BTHD = dy,
                          .dfinal_state_BHKD = dfinal,
                          .q_BTHD = q,
                          .k_BTHD = k,
                          .v_BTHD = v,
                          .dt_BTH = dt,
                          .log_a_BTH = log_a,
                          .D_H = skip,
                          .initial_state_BHKD = initial,
                          .chunk = chunk});
    Arrays out{{"final_state", r.get(final_state)},
               {"log_decay", r.get(log_decay)},
               {"dinitial_state", r.get(dinitial)},
               {"dk", r.get(dk)},
               {"dv", r.get(dv)},
               {"ddt", r.get(ddt)},
               {"dlog_a", r.get(dlog_a)}};
    if (outputs) out["y"] = r.get(y), out["dq"] = r.get(dq), out["dD"] = r.get_added(dskip);
    return out;
  }

  // The recurrence of ops.h, token by token.
  Arrays reference() const override {
    Array state = in.contains("initial_state") ? in.at("initial_state") : Array({B, H, K, D});
    Array y({B, T, H, D}), log_decay({B, H});
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t h = 0; h < H; ++h) {
        for (int64_t t = 0; t < T; ++t) {
          const double log_a = in.at("log_a")(b, t, h), dt = in.at("dt")(b, t, h);
          log_decay(b, h) += log_a;
          for (int64_t i = 0; i < K; ++i) {
            for (int64_t c = 0; c < D; ++c) {
              state(b, h, i, c) =
                  std::exp(log_a) * state(b, h, i, c) + in.at("k")(b, t, h, i) * dt * in.at("v")(b, t, h, c);
              if (outputs) y(b, t, h, c) += state(b, h, i, c) * in.at("q")(b, t, h, i);
            }
          }
          for (int64_t c = 0; outputs && c < D; ++c) y(b, t, h, c) += in.at("D")(h) * in.at("v")(b, t, h, c);
        }
      }
    }
    Arrays out{{"final_state", state}, {"log_decay", log_decay}};
    if (outputs) out["y"] = y;
    return out;
  }

  // Tokens [begin, begin + count) alone, from the given state (none: as this case begins).
  SsdCase tokens(int64_t begin, int64_t count) const {
    SsdCase part = *this;
    part.T = count;
    part.name = str(name, " tokens ", begin, " .. ", begin + count);
    for (const char* key : {"q", "k", "v", "dt", "log_a", "grad_y"}) {
      if (in.contains(key)) part.in[key] = in.at(key).slice(1, begin, count);
    }
    return part;
  }

  // The same scan without outputs.
  SsdCase converter() const {
    SsdCase part = *this;
    part.outputs = false;
    for (const char* key : {"q", "D", "grad_y"}) part.in.erase(key);
    return part;
  }
};

std::vector<SsdCase> cases() {
  return {{1, 1, 1, 8, 8, 64},
          {2, 45, 2, 24, 24, 16},
          {1, 257, 1, 8, 8, 64},
          {3, 45, 1, 8, 24, 7},
          {1, 60, 2, 96, 96, 64, true, false},
          {2, 33, 8, 8, 8, 16},
          {1, 257, 1, 24, 8, 32, false},
          {2, 45, 1, 8, 8, 64, false, false}};
}

TEST(Ssd, MatchesTheRecurrence) {
  for (const SsdCase& c : cases()) check_reference(c);
}

TEST(Ssd, GradientsMatchFiniteDifferences) {
  for (SsdCase& c : cases()) check_gradients(c);
}

TEST(Ssd, TypesLayoutsAndThreads) {
  for (const SsdCase& c : cases()) check_variants(c, 64);
}

TEST(Ssd, DoesNotDependOnTheChunk) {
  SsdCase c(2, 100, 2, 8, 24, 1);
  const Arrays one = run(c, DType::f64);
  for (int64_t chunk : {2, 13, 64, 100, 1000}) {
    c.chunk = chunk;
    const Arrays other = run(c, DType::f64);
    for (const auto& [output, x] : one) EXPECT_LT(relative_error(other.at(output), x), 1e-12) << output << " " << chunk;
  }
}

// [0, P) continued from its state is the whole scan, forward and backward.
TEST(Ssd, ContinuesFromAState) {
  const int64_t P = 37;
  SsdCase whole(2, 100, 2, 8, 24, 16);
  SsdCase head = whole.tokens(0, P), tail = whole.tokens(P, 100 - P);
  const Arrays all = run(whole, DType::f64);
  tail.in["initial_state"] = run(head, DType::f64).at("final_state");
  const Arrays second = run(tail, DType::f64);
  head.in["grad_final_state"] = second.at("dinitial_state");
  const Arrays first = run(head, DType::f64);

  EXPECT_LT(relative_error(second.at("final_state"), all.at("final_state")), 1e-13);
  EXPECT_LT(relative_error(first.at("dinitial_state"), all.at("dinitial_state")), 1e-13);
  for (const char* output : {"y", "dq", "dk", "dv", "ddt", "dlog_a"}) {
    EXPECT_LT(relative_error(first.at(output), all.at(output).slice(1, 0, P)), 1e-12) << output;
    EXPECT_LT(relative_error(second.at(output), all.at(output).slice(1, P, 100 - P)), 1e-12) << output;
  }
  for (int64_t h = 0; h < whole.H; ++h) {
    EXPECT_NEAR(first.at("dD")(h) + second.at("dD")(h), all.at("dD")(h), 1e-12);
  }
}

// The Memory Converter is the same scan without outputs.
TEST(Ssd, ConverterGivesTheFinalStateOfTheScan) {
  const SsdCase scan(2, 100, 2, 8, 24, 16);
  EXPECT_LT(
      relative_error(run(scan.converter(), DType::f64).at("final_state"), run(scan, DType::f64).at("final_state")),
      1e-14);
}

// Without dy the outputs' gradients are those of the converter.
TEST(Ssd, ConverterGradientsAreThoseOfAScanWithoutOutputGradient) {
  SsdCase scan(2, 100, 2, 8, 24, 16);
  const Arrays converter = run(scan.converter(), DType::f64);
  scan.in["grad_y"] = Array({2, 100, 2, 24});
  const Arrays silent = run(scan, DType::f64);
  for (const char* output : {"dk", "dv", "ddt", "dlog_a", "dinitial_state"}) {
    EXPECT_LT(relative_error(converter.at(output), silent.at(output)), 1e-13) << output;
  }
}

Array adjoint(const SsdCase& c, DType dtype, Array* log_decay) {
  Runner r(test_ops(), dtype, 2);
  const Tensor dinitial = r.out_acc({c.B, c.H, c.K, c.D}), decay = r.out_acc({c.B, c.H});
  r.ops().ssd_adjoint(
      {dinitial, decay, r.in(c.in.at("q")), r.in(c.in.at("grad_y")), r.in_acc(c.in.at("log_a")), c.chunk});
  r.expect_padding_untouched();
  *log_decay = r.get(decay);
  return r.get(dinitial);
}

TEST(Ssd, AdjointIsTheGradientOfTheInitialStateWhenNothingFollows) {
  for (SsdCase c : {SsdCase(2, 100, 2, 8, 24, 16), SsdCase(1, 1, 1, 8, 8, 64), SsdCase(2, 45, 8, 24, 8, 64)}) {
    c.in["grad_final_state"] = Array();
    const Arrays all = run(c, DType::f64);
    Array log_decay;
    EXPECT_LT(relative_error(adjoint(c, DType::f64, &log_decay), all.at("dinitial_state")), 1e-13) << c.name;
    EXPECT_LT(relative_error(log_decay, all.at("log_decay")), 1e-14) << c.name;
    EXPECT_LT(relative_error(adjoint(c, DType::f32, &log_decay), all.at("dinitial_state")), 1e-5) << c.name;
  }
}

// The identity of the decay gradient: dlog_a_t = <G, S> after the segment + sum_{s >= t} (q_s . dq_s - k_s . dk_s).
TEST(Ssd, DecayGradientFollowsFromTheOthers) {
  const SsdCase c(2, 100, 2, 8, 24, 16);
  const Arrays out = run(c, DType::f64);
  Array expected({c.B, c.T, c.H});
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t h = 0; h < c.H; ++h) {
      double sum = 0;
      for (int64_t i = 0; i < c.K; ++i) {
        for (int64_t d = 0; d < c.D; ++d)
          sum += c.in.at("grad_final_state")(b, h, i, d) * out.at("final_state")(b, h, i, d);
      }
      for (int64_t t = c.T - 1; t >= 0; --t) {
        for (int64_t i = 0; i < c.K; ++i) {
          sum +=
              c.in.at("q")(b, t, h, i) * out.at("dq")(b, t, h, i) - c.in.at("k")(b, t, h, i) * out.at("dk")(b, t, h, i);
        }
        expected(b, t, h) = sum;
      }
    }
  }
  EXPECT_LT(relative_error(out.at("dlog_a"), expected), 1e-12);
}

// Decays from "forget everything" to "forget nothing": every masked entry would overflow if it were computed.
TEST(Ssd, ExtremeDecays) {
  for (double low : {-80.0, -1e4}) {
    SsdCase c(1, 130, 2, 8, 8, 64);
    Random random(5);
    for (double& x : c.in["log_a"].data) x = random.uniform({1}).data[0] < 0 ? low : -0.0;
    check_reference(c);
    const Arrays f32 = run(c, DType::f32), f64 = run(c, DType::f64);
    for (const auto& [output, x] : f64) EXPECT_LT(relative_error(f32.at(output), x), 1e-5) << output << " " << low;
  }
}

TEST(Ssd, AccumulatesValueGradients) {
  const SsdCase c(1, 45, 2, 8, 24, 16);
  for (DType dtype : {DType::f32, DType::f64}) {
    Runner r(test_ops(), dtype, 1);
    const Tensor dk = r.out({1, 45, 2, 8}), dv = r.added({1, 45, 2, 24}), dq = r.out({1, 45, 2, 8});
    r.ops().ssd_backward({.dq_BTHD = dq,
                          .dk_BTHD = dk,
                          .dv_BTHD = dv,
                          .ddt_BTH = r.out_acc({1, 45, 2}),
                          .dlog_a_BTH = r.out_acc({1, 45, 2}),
                          .dD_H = r.added_acc({2}),
                          .dinitial_state_BHKD = {},
                          .dy_BTHD = r.in(c.in.at("grad_y")),
                          .dfinal_state_BHKD = r.in_acc(c.in.at("grad_final_state")),
                          .q_BTHD = r.in(c.in.at("q")),
                          .k_BTHD = r.in(c.in.at("k")),
                          .v_BTHD = r.in(c.in.at("v")),
                          .dt_BTH = r.in_acc(c.in.at("dt")),
                          .log_a_BTH = r.in_acc(c.in.at("log_a")),
                          .D_H = r.in(c.in.at("D")),
                          .initial_state_BHKD = r.in_acc(c.in.at("initial_state")),
                          .chunk = 16,
                          .accumulate_v = true});
    const Arrays alone = run(c, dtype);
    const double tolerance = dtype == DType::f32 ? 1e-6 : 1e-14;
    EXPECT_LT(relative_error(r.get(dk), alone.at("dk")), tolerance);
    EXPECT_LT(relative_error(r.get_added(dv), alone.at("dv")), tolerance);
  }
}

// States may be updated in place, with several spans working side by side too (B H = 1, many chunks).
TEST(Ssd, StatesInPlace) {
  const SsdCase c(1, 257, 1, 8, 8, 16);
  const Arrays expected = run(c, DType::f64);
  Runner r(test_ops(), DType::f64, 2);
  const Tensor q = r.in(c.in.at("q")), k = r.in(c.in.at("k")), v = r.in(c.in.at("v")), dt = r.in(c.in.at("dt")),
               log_a = r.in(c.in.at("log_a")), skip = r.in(c.in.at("D")), state = r.in(c.in.at("initial_state")),
               dstate = r.in(c.in.at("grad_final_state")), initial = r.in(c.in.at("initial_state"));
  r.ops().ssd_forward({r.out({1, 257, 1, 8}), state, {}, q, k, v, dt, log_a, skip, state, 16});
  EXPECT_EQ(relative_error(r.get(state), expected.at("final_state")), 0.0);
  r.ops().ssd_backward({r.out({1, 257, 1, 8}), r.out({1, 257, 1, 8}), r.out({1, 257, 1, 8}), r.out({1, 257, 1}),
                        r.out({1, 257, 1}), r.added({1}), dstate, r.in(c.in.at("grad_y")), dstate, q, k, v, dt, log_a,
                        skip, initial, 16, false});
  EXPECT_EQ(relative_error(r.get(dstate), expected.at("dinitial_state")), 0.0);
}

TEST(Ssd, NoTokens) {
  const SsdCase c(2, 0, 2, 8, 8, 64);
  const Arrays out = run(c, DType::f32);
  EXPECT_EQ(relative_error(out.at("final_state"), c.in.at("initial_state")), 0.0);
  EXPECT_EQ(relative_error(out.at("dinitial_state"), c.in.at("grad_final_state")), 0.0);
  EXPECT_EQ(norm(out.at("log_decay")), 0.0);
}

}  // namespace
}  // namespace tmamba::test
