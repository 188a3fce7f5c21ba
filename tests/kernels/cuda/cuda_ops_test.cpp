// The CUDA ops except attention, convolution, RoPE and the SSM scan, against the CPU in float64.
#include <cmath>

#include "tests/kernels/cuda/cuda_tools.h"

namespace tmamba::test {
namespace {

// --- Elementwise ---

TEST(CudaElementwise, FillScaleCopyAdd) {
  for (const std::vector<int64_t>& sizes : std::vector<std::vector<int64_t>>{
           {1}, {5}, {4096}, {70001}, {3, 7}, {64, 96}, {2, 3, 5}, {2, 17, 48, 64}, {0, 4}}) {
    Inputs inputs(1);
    const Array x = inputs.bf16(sizes), y = inputs.bf16(sizes);
    check_body({.name = str("elementwise of ", sizes.size(), " dimensions"), .f32_units = 2}, [&](Tensors& t) {
      const Tensor filled = t.out(sizes), scaled = t.in(x), copied = t.out(sizes), added = t.in(y);
      t.ops().fill({filled, 0.3125});
      t.ops().scale({scaled, 0.7});
      t.ops().copy({copied, t.in(x)});
      t.ops().add({added, t.in(x)});
      t.result("filled", filled), t.result("scaled", scaled), t.result("copied", copied), t.result("added", added);
    });
  }
}

TEST(CudaElementwise, TypesMix) {
  Inputs inputs(2);
  const Array x = inputs.f32({37, 24}), y = inputs.bf16({37, 24});
  for (DType from : {DType::bf16, DType::f32, DType::f64}) {
    for (DType to : {DType::bf16, DType::f32, DType::f64}) {
      Tensors t(gpu(), DType::f32, 0);
      const Tensor copied = t.make(Array({37, 24}), to), added = t.make(y, to);
      const Tensor source = t.make(x, from);
      gpu().copy({copied, source});
      gpu().add({added, source});
      const Array stored = from == DType::bf16 ? round_bf16(x) : x, copy = t.read(copied), sum = t.read(added);
      for (size_t i = 0; i < x.data.size(); ++i) {
        const double expected = to == DType::bf16 ? round_bf16(stored.data[i]) : stored.data[i];
        ASSERT_EQ(copy.data[i], expected) << name_of(from) << " to " << name_of(to) << " at " << i;
        double total = stored.data[i] + y.data[i];
        if (from != DType::f64 && to != DType::f64) total = static_cast<double>(static_cast<float>(total));
        if (to == DType::bf16) total = round_bf16(total);
        if (to == DType::f32) total = static_cast<double>(static_cast<float>(total));
        ASSERT_EQ(sum.data[i], total) << name_of(from) << " added to " << name_of(to) << " at " << i;
      }
    }
  }
}

TEST(CudaElementwise, SumSquares) {
  Inputs inputs(3);
  std::vector<Array> arrays;
  for (int64_t size : {1, 3, 65536, 65537, 200001, 0}) arrays.push_back(inputs.bf16({size}));
  for (int i = 0; i < 600; ++i) arrays.push_back(inputs.bf16({1 + i % 7}));
  for (DType dtype : {DType::bf16, DType::f32, DType::f64}) {
    double totals[2];
    for (double& total : totals) {
      Tensors t(gpu(), dtype, 0);
      std::vector<ConstTensor> tensors;
      for (const Array& x : arrays) tensors.push_back(t.in(x));
      const Tensor out = t.make(Array({1}, 77.0), DType::f64);
      gpu().sum_squares({out, tensors});
      total = t.read(out)(0);
    }
    double expected = 0;
    for (const Array& x : arrays) expected += dot(x, x);
    EXPECT_NEAR(totals[0], expected, 1e-12 * expected) << name_of(dtype);
    EXPECT_EQ(totals[0], totals[1]) << name_of(dtype);
  }
  Tensors t(gpu(), DType::f32, 0);
  const Tensor out = t.make(Array({1}, 77.0), DType::f64);
  gpu().sum_squares({out, {}});
  EXPECT_EQ(t.read(out)(0), 0.0);
}

TEST(CudaElementwise, RefusesTensorsOfTheHost) {
  Tensors host(cpu(), DType::f32, 0), device(gpu(), DType::f32, 0);
  const Tensor x = host.in(Array({4, 8}, 1.0)), y = device.in(Array({4, 8}, 1.0));
  EXPECT_THROW(gpu().fill({x, 0}), Error);
  EXPECT_THROW(gpu().copy({y, x}), Error);
  EXPECT_THROW(gpu().swiglu_forward({device.out({4, 4}), x}), Error);
  EXPECT_THROW(gpu().linear_forward({device.out({4, 4}), y, x.slice(0, 0, 4)}), Error);
}

// --- Embedding ---

TEST(CudaEmbedding, ForwardAndBackward) {
  struct Sizes {
    int64_t N, V, C, vocab_begin;
  };
  for (const auto& [N, V, C, begin] : {Sizes{1, 1, 1, 0}, Sizes{50, 7, 24, 0}, Sizes{2049, 300, 96, 100},
                                       Sizes{5000, 3, 40, 0}, Sizes{4500, 900, 520, 0}, Sizes{0, 5, 8, 0}}) {
    Inputs inputs(4);
    const Array table = inputs.bf16({V, C}), dy = inputs.bf16({N, C}), start = inputs.bf16({V, C});
    const Array tokens = inputs.tokens(N, 0, begin > 0 ? begin + V + 50 : V);  // some belong to other shards
    check_body({.name = str("embedding N ", N, " V ", V, " C ", C)}, [&](Tensors& t) {
      const Tensor y = t.out({N, C}), dtable = t.in_acc(start), ids = t.ints(tokens);
      t.ops().embedding_forward({y, t.in(table), ids, begin});
      t.ops().embedding_backward({dtable, t.in(dy), ids, begin});
      t.result("y", y), t.result("dtable", dtable);
    });
  }
}

// --- RMSNorm ---

TEST(CudaRmsnorm, ForwardAndBackward) {
  struct Sizes {
    int64_t N, C;
  };
  for (const auto& [N, C] : {Sizes{1, 3}, Sizes{3, 5}, Sizes{45, 96}, Sizes{300, 1536}, Sizes{33, 2048},
                             Sizes{19, 2056}, Sizes{40, 4096}, Sizes{0, 8}}) {
    for (bool residual : {false, true}) {
      Inputs inputs(5);
      const Array x = inputs.bf16({N, C}), delta = inputs.bf16({N, C}), w = inputs.bf16({C}, 0.5, 1.5);
      const Array dy = inputs.bf16({N, C}), dres = inputs.bf16({N, C}), start = inputs.bf16({C});
      check_body({.name = str("rmsnorm N ", N, " C ", C, residual ? " residual" : "")}, [&](Tensors& t) {
        const Tensor y = t.out({N, C}), rstd = t.out_acc({N}), dx = t.in(dres), dw = t.in_acc(start), weight = t.in(w);
        const Tensor sum = residual ? t.out({N, C}) : Tensor(), input = t.in(x);
        t.ops().rmsnorm_forward({y, rstd, sum, input, residual ? t.in(delta) : Tensor(), weight, 1e-5});
        // Backward gets inputs of its own, not forward's rounded results; those are checked through `sum`.
        const Tensor rstd_own = t.out_acc({N}), y_own = t.out({N, C});
        t.ops().rmsnorm_forward({y_own, rstd_own, {}, input, {}, weight, 1e-5});
        t.ops().rmsnorm_backward(
            {dx, dw, t.in(dy), input, rstd_own, weight, residual ? ConstTensor(dx) : ConstTensor()});
        t.result("y", y), t.result("dx", dx), t.result("dw", dw), t.result("rstd_own", rstd_own);
        if (residual) t.result("sum", sum);
      });
    }
  }
}

// --- Linear ---

TEST(CudaLinear, ForwardAndBackward) {
  struct Sizes {
    int64_t N, O, I;
  };
  for (const auto& [N, O, I] : {Sizes{1, 1, 1}, Sizes{5, 3, 7}, Sizes{1, 96, 64}, Sizes{130, 257, 65},
                                Sizes{256, 128, 512}, Sizes{1000, 16, 1536}, Sizes{0, 4, 8}}) {
    Inputs inputs(6);
    const Array x = inputs.bf16({N, I}), w = inputs.bf16({O, I}), dy = inputs.bf16({N, O});
    const Array dx_start = inputs.bf16({N, I}), dw_start = inputs.bf16({O, I});
    check_body({.name = str("linear N ", N, " O ", O, " I ", I), .padded_same = false}, [&](Tensors& t) {
      const Tensor y = t.out({N, O}), dx = t.out({N, I}), dx_added = t.in(dx_start), dw = t.in_acc(dw_start);
      const Tensor weight = t.in(w), grad = t.in(dy), input = t.in(x);
      t.ops().linear_forward({y, input, weight});
      t.ops().linear_backward_input({dx, grad, weight, false});
      t.ops().linear_backward_input({dx_added, grad, weight, true});
      t.ops().linear_backward_weight({dw, grad, input});
      t.result("y", y), t.result("dx", dx), t.result("dx_added", dx_added), t.result("dw", dw);
    });
  }
}

// --- dt ---

TEST(CudaDt, ForwardAndBackward) {
  struct Sizes {
    int64_t N, H;
  };
  for (const auto& [N, H] : {Sizes{1, 1}, Sizes{45, 3}, Sizes{3000, 16}, Sizes{700, 40}, Sizes{0, 4}}) {
    Inputs inputs(9);
    const Array raw = inputs.bf16({N, H}, -8, 8), bias = inputs.bf16({H}, -4, 1), A_log = inputs.bf16({H}, 0, 2.5);
    const Array ddt = inputs.f32({N, H}), dlog_a = inputs.f32({N, H}), start = inputs.bf16({H});
    check_body({.name = str("dt N ", N, " H ", H)}, [&](Tensors& t) {
      const Tensor dt = t.out_acc({N, H}), log_a = t.out_acc({N, H}), draw = t.out({N, H});
      const Tensor dbias = t.in_acc(start), dA_log = t.in_acc(start), x = t.in(raw), b = t.in(bias), a = t.in(A_log);
      t.ops().dt_forward({dt, log_a, x, b, a});
      t.ops().dt_backward({draw, dbias, dA_log, t.in_acc(ddt), t.in_acc(dlog_a), x, b, a});
      t.result("dt", dt), t.result("log_a", log_a), t.result("draw", draw);
      t.result("dbias", dbias), t.result("dA_log", dA_log);
    });
  }
}

// --- Gated norm ---

TEST(CudaGatedNorm, ForwardAndBackward) {
  struct Sizes {
    int64_t B, T, H, D;
    bool gated;
  };
  for (const auto& [B, T, H, D, gated] :
       {Sizes{1, 1, 1, 3, true}, Sizes{2, 45, 3, 24, true}, Sizes{1, 300, 16, 96, true}, Sizes{2, 70, 12, 128, true},
        Sizes{1, 33, 40, 64, true}, Sizes{1, 20, 2, 250, true}, Sizes{1, 37, 3, 72, true}, Sizes{3, 21, 5, 160, true},
        Sizes{1, 9, 2, 384, true}, Sizes{1, 5, 1, 1000, true}, Sizes{1, 0, 2, 8, true}, Sizes{2, 45, 3, 96, false}}) {
    Inputs inputs(10);
    const Array y = inputs.bf16({B, T, H, D}), w = inputs.bf16({H, D}, 0.5, 1.5);
    const Array z = gated ? inputs.bf16({B, T, H, D}, -3, 3) : Array();
    const Array dout = inputs.bf16({B, T, H, D}), start = inputs.bf16({H, D});
    const std::string name = str("gated_norm B ", B, " T ", T, " H ", H, " D ", D, gated ? "" : " without a gate");
    // Heads this wide are supported in bfloat16 only.
    Check check{.name = name};
    if (D > 256) check.types = {DType::bf16, DType::f32};
    if (D > 512) check.types = {DType::bf16};
    check_body(check, [&](Tensors& t) {
      const Tensor out = t.out({B, T, H, D}), rstd = t.out_acc({B, T, H}), dw = t.in_acc(start);
      const Tensor dz = gated ? t.out({B, T, H, D}) : Tensor();
      const Tensor dy = t.in(dout), y_in = t.in(y), z_in = t.in(z), weight = t.in(w);  // dy overwrites dout
      t.ops().gated_norm_forward({out, rstd, y_in, z_in, weight, 1e-5});
      t.ops().gated_norm_backward({dy, dz, dw, dy, y_in, z_in, rstd, weight});
      t.result("out", out), t.result("rstd", rstd), t.result("dy", dy), t.result("dw", dw);
      if (gated) t.result("dz", dz);
    });
  }
}

// --- SwiGLU ---

TEST(CudaSwiglu, ForwardAndBackward) {
  struct Sizes {
    int64_t N, F;
  };
  for (const auto& [N, F] :
       {Sizes{1, 1}, Sizes{45, 11}, Sizes{40, 4096}, Sizes{70, 200}, Sizes{17000, 8}, Sizes{0, 4}}) {
    Inputs inputs(11);
    const Array gate_up = inputs.bf16({N, 2 * F}, -4, 4), dh = inputs.bf16({N, F});
    check_body({.name = str("swiglu N ", N, " F ", F)}, [&](Tensors& t) {
      const Tensor h = t.out({N, F}), dgate_up = t.out({N, 2 * F}), x = t.in(gate_up);
      t.ops().swiglu_forward({h, x});
      t.ops().swiglu_backward({dgate_up, t.in(dh), x});
      t.result("h", h), t.result("dgate_up", dgate_up);
    });
  }
}

// --- Cross-entropy ---

TEST(CudaCrossEntropy, StatsLossGradient) {
  struct Sizes {
    int64_t N, V, vocab_begin;
  };
  for (const auto& [N, V, begin] : {Sizes{1, 1, 0}, Sizes{5, 7, 0}, Sizes{45, 4099, 0}, Sizes{40, 32768, 0},
                                    Sizes{30, 1000, 500}, Sizes{0, 8, 0}}) {
    Inputs inputs(12);
    const Array logits = inputs.bf16({N, V}, -12, 12);
    Array targets = inputs.tokens(N, 0, begin + V + begin);
    for (int64_t n = 3; n < N; n += 7) targets(n) = -1;
    check_body({.name = str("cross_entropy N ", N, " V ", V)}, [&](Tensors& t) {
      const Tensor max = t.out_acc({N}), sum_exp = t.out_acc({N}), target = t.out_acc({N}), loss = t.out_acc({N});
      const Tensor total = t.make(Array({1}, 0.5), DType::f64), count = t.make(Array({1}, 2.0), DType::f64);
      const Tensor x = t.in(logits), ids = t.ints(targets);
      t.ops().cross_entropy_stats({max, sum_exp, target, x, ids, begin});
      t.ops().cross_entropy_loss({total, count, loss, max, sum_exp, target, ids});
      t.result("max", max), t.result("sum_exp", sum_exp), t.result("target", target), t.result("loss", loss);
      t.result("total", total), t.result("count", count);
      t.ops().cross_entropy_gradient({x, max, sum_exp, ids, begin, 0.125});
      t.result("gradient", x);
    });
  }
}

TEST(CudaCrossEntropy, Rescale) {
  for (int64_t N : {1, 511, 1300, 0}) {
    Inputs inputs(16);
    const Array sum_exp = inputs.f32({N}, 1, 1000), max = inputs.f32({N}, -4, 4);
    Array global_max = inputs.f32({N}, 4, 8);
    for (int64_t n = 0; n < N; n += 3) global_max(n) = max(n);
    check_body({.name = str("cross_entropy_rescale N ", N)}, [&](Tensors& t) {
      const Tensor rescaled = t.in_acc(sum_exp);
      t.ops().cross_entropy_rescale({rescaled, t.in_acc(max), t.in_acc(global_max)});
      t.result("sum_exp", rescaled);
    });
  }
}

TEST(CudaCrossEntropy, LargeLogits) {
  Inputs inputs(13);
  Array logits = inputs.bf16({20, 600}, -1e4, 1e4);
  const Array targets = inputs.tokens(20, 0, 600);
  check_body({.name = "cross_entropy of large logits"}, [&](Tensors& t) {
    const Tensor max = t.out_acc({20}), sum_exp = t.out_acc({20}), target = t.out_acc({20}), x = t.in(logits);
    const Tensor ids = t.ints(targets);
    t.ops().cross_entropy_stats({max, sum_exp, target, x, ids, 0});
    t.result("max", max), t.result("sum_exp", sum_exp);
    t.ops().cross_entropy_gradient({x, max, sum_exp, ids, 0, 1.0});
    t.result("gradient", x);
  });
}

// --- AdamW ---

TEST(CudaAdamw, ManyTensors) {
  Inputs inputs(14);
  struct Parameter {
    Array master, m, v, grad;
    bool decay;
  };
  std::vector<Parameter> parameters;
  std::vector<int64_t> sizes{1, 5, 8192, 8193, 100003, 0};
  for (int i = 0; i < 300; ++i) sizes.push_back(1 + i % 13);
  for (int64_t size : sizes) {
    parameters.push_back({inputs.bf16({size}), inputs.bf16({size}, -0.1, 0.1), inputs.bf16({size}, 0, 0.01),
                          inputs.bf16({size}), parameters.size() % 2 == 0});
  }
  const Array step = array_of(StepScalars{.lr = 1e-2,
                                          .bias_correction1 = 1 - std::pow(0.9, 3),
                                          .bias_correction2 = 1 - std::pow(0.95, 3),
                                          .grad_scale = 0.5,
                                          .applied = 1});
  check_body({.name = "adamw", .acc_error = 64 * 0x1p-24}, [&](Tensors& t) {
    std::vector<AdamwTensor> list;
    for (const Parameter& p : parameters) {
      const Tensor master = t.in_acc(p.master);
      const Tensor param = t.dtype() == t.acc() ? master : t.out(p.master.sizes);
      list.push_back({param, master, t.in_acc(p.m), t.in_acc(p.v), t.in_acc(p.grad), p.decay});
    }
    t.ops().adamw({list, {.weight_decay = 0.1}, t.make(step, DType::f64)});
    for (size_t i = 0; i < list.size(); i += i < 5 ? 1 : 100) {  // the first ones and every hundredth small one
      t.result(str("master", i), list[i].master), t.result(str("m", i), list[i].m), t.result(str("v", i), list[i].v);
      if (t.dtype() != t.acc()) {
        EXPECT_EQ(relative_error(t.read(list[i].param), round_bf16(t.read(list[i].master))), 0.0) << i;
      }
    }
  });
}

// --- Sizes beyond 2^31 ---

// Rows beyond element 2^31 must equal the first ones.
TEST(CudaOps, IndicesAreSixtyFourBits) {
  constexpr int64_t N = 600001, C = 4608, F = C / 2;
  const Buffer x_memory({N, C}, DType::bf16, Device::cuda), y_memory({N, C}, DType::bf16, Device::cuda);
  const Tensor x = x_memory.tensor({N, C}, DType::bf16), y = y_memory.tensor({N, C}, DType::bf16);
  Inputs inputs(15);
  Tensors small(gpu(), DType::bf16, 0);
  const Tensor rows = small.in(inputs.bf16({9, C}));
  const auto expect_same_ends = [&](const Tensor& rows_of_it, const char* what) {
    const int64_t width = rows_of_it.size(1);
    const Tensor first = small.out({3, width}), last = small.out({3, width});
    gpu().copy({first, rows_of_it.slice(0, 3, 3)});
    gpu().copy({last, rows_of_it.slice(0, N - 3, 3)});
    EXPECT_EQ(relative_error(small.read(last), small.read(first)), 0.0) << what;
    EXPECT_GT(norm(small.read(first)), 0.0) << what;
  };
  gpu().fill({x, 0.25});
  gpu().copy({x.slice(0, 0, 6), rows.slice(0, 0, 6)});
  gpu().copy({x.slice(0, N - 6, 6), rows.slice(0, 0, 6)});
  expect_same_ends(x, "copy");

  const Tensor taps = small.in(inputs.bf16({C, 4})), bias = small.in(inputs.bf16({C}));
  gpu().conv_silu_forward({y.view({1, N, C}), x.view({1, N, C}), {}, taps, bias});
  expect_same_ends(y, "conv_silu_forward");
  const Tensor h = Tensor(y.raw(), {N, F}, DType::bf16, Device::cuda);
  gpu().swiglu_forward({h, x});
  expect_same_ends(h, "swiglu_forward");
  const Tensor rstd = small.out_acc({N});
  gpu().rmsnorm_forward({y, rstd, {}, x, {}, bias, 1e-5});
  expect_same_ends(y, "rmsnorm_forward");
  const Tensor heads = x.view({1, N, 48, 96});
  gpu().rope_forward({heads.slice(1, 0, 6), heads.slice(1, 0, 6), 7, 1e4});
  gpu().rope_forward({heads.slice(1, N - 6, 6), heads.slice(1, N - 6, 6), 7, 1e4});
  expect_same_ends(x, "rope_forward");
}

}  // namespace
}  // namespace tmamba::test
