// Times attention and the SSM scan over T tokens, forward and backward, in bfloat16.
//   cuda_mixer_bench [B T H D [REPEATS]]
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "kernels/cuda/common/hopper.h"
#include "tests/kernels/cuda/bench_tools.h"

namespace tmamba {
namespace {

struct MixerBench {
  OpBench bench;
  int64_t B, T, H, D;

  Tensor tensor(std::initializer_list<int64_t> sizes, DType dtype) { return bench.tensor(sizes, dtype); }
  Tensor uniform(std::initializer_list<int64_t> sizes, DType dtype, float low, float high) {
    return bench.uniform(sizes, dtype, low, high);
  }
  double time(const std::function<void()>& body) { return bench.time(body); }

  void attention() {
    Ops& ops = bench.ops();
    const Tensor q = uniform({B, T, H, D}, DType::bf16, -2, 2), k = uniform({B, T, H, D}, DType::bf16, -2, 2);
    const Tensor v = uniform({B, T, H, D}, DType::bf16, -1, 1), d_o = uniform({B, T, H, D}, DType::bf16, -1, 1);
    const Tensor o = tensor({B, T, H, D}, DType::bf16), lse = tensor({B, T, H}, DType::f32);
    const Tensor dq = tensor({B, T, H, D}, DType::bf16);
    const Tensor dk = uniform({B, T, H, D}, DType::bf16, 0, 1), dv = uniform({B, T, H, D}, DType::bf16, 0, 1);
    const double scale = 1 / std::sqrt(static_cast<double>(D));
    const double flops = 2.0 * static_cast<double>(B * T) * static_cast<double>(T * H * D);  // of the causal half
    for (bool hopper : {true, false}) {
      cuda::allow_wgmma(hopper);
      const double forward = time([&] { ops.attention_forward({o, lse, q, k, v, 0, scale}); });
      const double backward = time([&] { ops.attention_backward({dq, dk, dv, d_o, o, lse, q, k, v, 0, scale}); });
      std::printf("attention %-9s forward %8.3f ms %6.1f TFLOP/s   backward %8.3f ms %6.1f TFLOP/s\n",
                  hopper ? "Hopper" : "portable", forward, flops / forward / 1e9, backward,
                  2.5 * flops / backward / 1e9);
    }
    cuda::allow_wgmma(true);
  }

  void scan() {
    Ops& ops = bench.ops();
    const Tensor q = uniform({B, T, H, D}, DType::bf16, -1, 1), k = uniform({B, T, H, D}, DType::bf16, -1, 1);
    const Tensor v = uniform({B, T, H, D}, DType::bf16, -1, 1), dy = uniform({B, T, H, D}, DType::bf16, -1, 1);
    const Tensor dt = uniform({B, T, H}, DType::f32, 0.01f, 0.1f), log_a = uniform({B, T, H}, DType::f32, -0.1f, 0);
    const Tensor skip = uniform({H}, DType::bf16, 0, 1), y = tensor({B, T, H, D}, DType::bf16);
    const Tensor dq = tensor({B, T, H, D}, DType::bf16), dk = tensor({B, T, H, D}, DType::bf16);
    const Tensor dv = tensor({B, T, H, D}, DType::bf16), ddt = tensor({B, T, H}, DType::f32);
    const Tensor dlog_a = tensor({B, T, H}, DType::f32), dskip = tensor({H}, DType::f32);
    ops.fill({dskip, 0});
    for (bool hopper : {true, false}) {
      cuda::allow_wgmma(hopper);
      const double forward = time([&] { ops.ssd_forward({y, {}, {}, q, k, v, dt, log_a, skip, {}, 64}); });
      const double backward = time([&] {
        ops.ssd_backward({dq, dk, dv, ddt, dlog_a, dskip, {}, dy, {}, q, k, v, dt, log_a, skip, {}, 64, false});
      });
      const double pass = 2e-6 * static_cast<double>(B * T * H * D);  // MB of one tensor
      std::printf("SSM scan  %-9s forward %8.3f ms %6.1f GB/s      backward %8.3f ms %6.1f GB/s (4 and 7 tensors)\n",
                  hopper ? "Hopper" : "portable", forward, 4 * pass / forward, backward, 7 * pass / backward);
    }
    cuda::allow_wgmma(true);
  }
};

}  // namespace
}  // namespace tmamba

int main(int argc, char** argv) {
  using namespace tmamba;
  if (argc != 1 && argc != 5 && argc != 6) {
    std::fprintf(stderr, "usage: cuda_mixer_bench [B T H D [REPEATS]]\n");
    return 2;
  }
  const auto number = [&](int i, int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  try {
    MixerBench mixer{.bench = OpBench(static_cast<int>(number(5, 20))),
                     .B = number(1, 2),
                     .T = number(2, 8192),
                     .H = number(3, 16),
                     .D = number(4, 96)};
    std::printf("B %lld, T %lld, H %lld, D %lld\n", static_cast<long long>(mixer.B), static_cast<long long>(mixer.T),
                static_cast<long long>(mixer.H), static_cast<long long>(mixer.D));
    mixer.attention();
    mixer.bench.clear();
    mixer.scan();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
