// A CUDA graph of ops: captured after one warm-up with the workspace fixed, replayed, it gives the same bits.
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
    ops.rmsnorm_forward(u, rstd, {}, x, {}, norm_w, 1e-5);
    ops.linear_forward(qkv.view({B * T, 3 * C}), u, w);
    const auto part = [&](int64_t which) { return qkv.slice(2, which * C, C).split(2, H, D); };
    ops.fill(dk, 0), ops.fill(dv, 0), ops.fill(dw, 0), ops.fill(dnorm_w, 0);
    ops.attention_forward({o, lse, part(0), part(1), part(2), 0, 0.1});
    ops.attention_backward({dq, dk, dv, o, o, lse, part(0), part(1), part(2), 0, 0.1});
    ops.ssd_forward({y, state, {}, part(0), part(1), part(2), dt, log_a, {}, {}, 64});
    ops.linear_backward_weight(dw, qkv.view({B * T, 3 * C}), u);
    ops.rmsnorm_backward(dx, dnorm_w, u, x, rstd, norm_w, {});
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
  ops.workspace().fix(true);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  TM_CUDA(cudaStreamBeginCapture(ops.stream(), cudaStreamCaptureModeThreadLocal));
  step.run();
  TM_CUDA(cudaStreamEndCapture(ops.stream(), &graph));
  TM_CUDA(cudaGraphInstantiate(&replay, graph, 0));
  for (const Tensor& out : {step.o, step.dq, step.y, step.state, step.dx}) ops.fill(out, -1.0);
  TM_CUDA(cudaGraphLaunch(replay, ops.stream()));
  expect_same_bits(step.read(), expected, "replayed graph");
  TM_CUDA(cudaGraphExecDestroy(replay));
  TM_CUDA(cudaGraphDestroy(graph));
  EXPECT_THROW(ops.workspace().reserve(ops.workspace().bytes() + 1), Error);
  ops.workspace().fix(false);
}

}  // namespace
}  // namespace tmamba::test
