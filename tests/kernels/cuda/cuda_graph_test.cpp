// Recordings of ops as CUDA graphs.
#include <cmath>

#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/cuda/cuda_tools.h"

namespace tmamba::test {
namespace {

struct Step {
  static constexpr int64_t B = 1, T = 130, H = 2, D = 96, C = H * D;
  Tensors t{gpu(), DType::bf16, 0};
  Tensor x, w, u, rstd, qkv, dw, o, lse, dq, dk, dv, dt, log_a, y, state, norm_w, dnorm_w, dx;

  Step() {
    Inputs inputs(41);
    x = t.in(inputs.bf16({B * T, C})), w = t.in(inputs.bf16({3 * C, C}, -0.1, 0.1));
    norm_w = t.in(inputs.bf16({C}, 0.5, 1.5));
    dt = t.in_acc(inputs.f32({B, T, H}, 0.01, 1)), log_a = t.in_acc(inputs.f32({B, T, H}, -0.5, -0.01));
    u = t.out({B * T, C}), rstd = t.out_acc({B * T}), qkv = t.out({B, T, 3 * C});
    o = t.out({B, T, H, D}), lse = t.out_acc({B, T, H}), y = t.out({B, T, H, D}), state = t.out_acc({B, H, D, D});
    dq = t.out({B, T, H, D}), dk = t.in(Array({B, T, H, D})), dv = t.in(Array({B, T, H, D}));
    dw = t.in_acc(Array({3 * C, C})), dnorm_w = t.in_acc(Array({C})), dx = t.out({B * T, C});
  }

  void run() {
    Ops& ops = t.ops();
    ops.rmsnorm_forward({u, rstd, {}, x, {}, norm_w, 1e-5});
    ops.linear_forward({qkv.view({B * T, 3 * C}), u, w});
    const auto part = [&](int64_t which) { return qkv.slice(2, which * C, C).split(2, H, D); };
    ops.fill({dk, 0}), ops.fill({dv, 0}), ops.fill({dw, 0}), ops.fill({dnorm_w, 0});
    ops.attention_forward({o, lse, part(0), part(1), part(2), 0, 0.1});
    ops.attention_backward({dq, dk, dv, o, o, lse, part(0), part(1), part(2), 0, 0.1});
    ops.ssd_forward({y, state, {}, part(0), part(1), part(2), dt, log_a, {}, {}, 64});
    ops.linear_backward_weight({dw, qkv.view({B * T, 3 * C}), u});
    ops.rmsnorm_backward({dx, dnorm_w, u, x, rstd, norm_w, {}});
  }

  Arrays read() {
    return {{"o", t.read(o)},   {"dq", t.read(dq)}, {"dk", t.read(dk)},
            {"dv", t.read(dv)}, {"y", t.read(y)},   {"state", t.read(state)},
            {"dw", t.read(dw)}, {"dx", t.read(dx)}, {"dnorm_w", t.read(dnorm_w)}};
  }
};

TEST(CudaGraph, ReplayGivesTheSameBits) {
  auto& ops = dynamic_cast<cuda::CudaOps&>(gpu());
  Step step;
  step.run();
  const Arrays expected = step.read();
  for (const Tensor& out : {step.o, step.dq, step.y, step.state, step.dx}) ops.fill({out, -1.0});
  int counted = 0, joined = 0;
  const auto recording = ops.record([&] {
    step.run();
    Recorder::current()->on_replay([&] { ++counted; });
    for (int i = 0; i < 2; ++i) Recorder::current()->at_end(&joined, [&] { ++joined; });
  });
  ASSERT_NE(recording, nullptr);
  EXPECT_EQ(Recorder::current(), nullptr);
  EXPECT_EQ(step.t.read(step.o)(0, 0, 0, 0), -1.0) << "recording ran the work";
  for (int i = 0; i < 2; ++i) {
    recording->replay();
    expect_same_bits(step.read(), expected, "replayed");
  }
  EXPECT_EQ(counted, 2);
  EXPECT_EQ(joined, 1);
}

// A step's scalars are in device memory: a replay reads their current values.
TEST(CudaGraph, ReplayReadsTheScalarsOfItsStep) {
  Tensors t(gpu(), DType::bf16, 0);
  Inputs inputs(42);
  const Array start = inputs.f32({1000}), grad = inputs.f32({1000});
  const auto updated = [&](bool replayed) {
    const Tensor master = t.in_acc(start), param = t.out({1000}), m = t.in_acc(Array({1000})),
                 v = t.in_acc(Array({1000}));
    const AdamwTensor tensor{param, master, m, v, t.in_acc(grad), true};
    Buffer scalars({kScalars<StepScalars>}, DType::f64, Device::cuda);
    const Tensor step_S = scalars.tensor({kScalars<StepScalars>}, DType::f64);
    const auto work = [&] { gpu().adamw({{&tensor, 1}, {.weight_decay = 0.1}, step_S}); };
    const auto recording = gpu().record(work);
    for (int step = 1; step <= 3; ++step) {
      StepScalars host{.lr = 0.1 * step,
                       .bias_correction1 = 1 - std::pow(0.9, step),
                       .bias_correction2 = 1 - std::pow(0.95, step),
                       .grad_scale = 1,
                       .applied = step == 2 ? 0.0 : 1.0};
      copy_blocking(step_S, scalars_tensor(host));
      replayed ? recording->replay() : work();
      gpu().synchronize();
    }
    return t.read(master);
  };
  EXPECT_EQ(relative_error(updated(true), updated(false)), 0.0);
  EXPECT_GT(relative_error(updated(true), start), 0.0);
}

TEST(CudaGraph, AWorkspaceThatMovedMakesARecordingInvalid) {
  auto& ops = dynamic_cast<cuda::CudaOps&>(gpu());
  Step step;
  step.run();
  const auto recording = ops.record([&] { step.run(); });
  EXPECT_TRUE(recording->valid());
  ops.workspace().reserve(ops.workspace().bytes() + (size_t{64} << 20));
  EXPECT_FALSE(recording->valid());
  // While recording, the workspace must not be reallocated; the failure leaves the stream usable.
  EXPECT_THROW(ops.record([&] { ops.workspace().reserve(ops.workspace().bytes() + 1); }), Error);
  EXPECT_EQ(Recorder::current(), nullptr);
  step.run();
  ops.synchronize();
}

}  // namespace
}  // namespace tmamba::test
