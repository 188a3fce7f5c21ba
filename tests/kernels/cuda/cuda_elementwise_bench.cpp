// Times the memory-bound ops in bfloat16 and compares them with a plain copy: milliseconds, bytes per second (each
// tensor read or written once), and the fraction of the copy's rate.
//   cuda_elementwise_bench [B T H D F V [REPEATS [OP]]]      OP: only ops whose names begin with OP
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/kernels/cuda/bench_tools.h"

namespace tmamba {
namespace {

constexpr DType kType = DType::bf16;

struct ElementwiseBench {
  OpBench bench;
  int64_t B, T, H, D, F, V;
  std::string only;
  double roof = 0;  // bytes per second of the copy

  static constexpr int kCalls = 10;  // back to back, as in a step

  Tensor in(std::initializer_list<int64_t> sizes) { return bench.uniform(sizes, kType, -2, 2); }
  Tensor out(std::initializer_list<int64_t> sizes) { return bench.tensor(sizes, kType); }
  Tensor sums(std::initializer_list<int64_t> sizes) {
    const Tensor x = bench.tensor(sizes, DType::f32);
    bench.ops().fill({x, 0});
    return x;
  }
  bool wanted(const char* name) const { return std::string(name).rfind(only, 0) == 0; }

  void report(const char* name, std::initializer_list<ConstTensor> moved, const std::function<void()>& body) {
    if (!wanted(name)) return;
    double bytes = 0;
    for (const ConstTensor& x : moved) bytes += static_cast<double>(x.bytes());
    const double ms = bench.time(body, kCalls), rate = bytes / ms * 1e3;
    std::printf("%-34s %8.4f ms %7.1f GB/s %5.1f %%\n", name, ms, rate * 1e-9, roof > 0 ? 100 * rate / roof : 0.0);
    std::fflush(stdout);
  }

  void copy() {
    const int64_t n = int64_t{1} << 29;
    const Tensor x = bench.tensor({n}, kType), y = bench.tensor({n}, kType);
    bench.ops().fill({x, 0.5});
    const double ms = bench.time([&] { bench.ops().copy({y, x}); });
    roof = 4.0 * static_cast<double>(n) / ms * 1e3;
    std::printf("%-34s %8.4f ms %7.1f GB/s\n", "copy of 2^29 elements", ms, roof * 1e-9);
    bench.clear();
    const Tensor a = in({B * T, H * D}), b = out({B * T, H * D});
    report("copy_of_activations", {a, b}, [&] { bench.ops().copy({b, a}); });
    bench.clear();
  }

  void conv() {
    const int64_t C = 3 * H * D, W = 4;
    Ops& ops = bench.ops();
    const Tensor x = in({B, T, C}), y = out({B, T, C}), w = in({C, W}), bias = in({C}), dx = out({B, T, C});
    const Tensor dy = in({B, T, C}), k_rot = in({B, T, H, D}), dw = sums({C, W}), db = sums({C});
    report("conv_silu_forward", {x, y}, [&] { ops.conv_silu_forward({y, x, {}, w, bias}); });
    report("conv_silu_backward", {x, dy, dx}, [&] { ops.conv_silu_backward({dx, {}, dw, db, dy, x, {}, w, bias}); });
    const Tensor half = k_rot.slice(1, 0, T / 2);
    report("conv_silu_rope_forward P=T", {x, y}, [&] {
      ops.conv_silu_rope_forward({y, {}, x, {}, w, bias, H, T, 0, 1e4});
    });
    report("conv_silu_rope_forward P=T/2", {x, y, half}, [&] {
      ops.conv_silu_rope_forward({y, half, x, {}, w, bias, H, T / 2, 0, 1e4});
    });
    report("conv_silu_rope_backward P=T", {x, dy, dx}, [&] {
      ops.conv_silu_rope_backward({dx, {}, dw, db, dy, {}, x, {}, w, bias, H, T, 0, 1e4});
    });
    report("conv_silu_rope_backward P=T/2", {x, dy, dx, half}, [&] {
      ops.conv_silu_rope_backward({dx, {}, dw, db, dy, half, x, {}, w, bias, H, T / 2, 0, 1e4});
    });
    const Tensor q = x.slice(2, 0, H * D).split(2, H, D), q_rot = y.slice(2, 0, H * D).split(2, H, D);
    report("rope_forward", {q, q_rot}, [&] { ops.rope_forward({q_rot, q, 0, 1e4}); });
    bench.clear();
  }

  void norms() {
    const int64_t N = B * T, C = H * D;
    Ops& ops = bench.ops();
    const Tensor x = in({N, C}), delta = in({N, C}), y = out({N, C}), sum = out({N, C}), w = in({C});
    const Tensor rstd = sums({N}), dw = sums({C});
    report("rmsnorm_forward", {x, y, rstd}, [&] { ops.rmsnorm_forward({y, rstd, {}, x, {}, w, 1e-5}); });
    report("rmsnorm_forward residual", {x, delta, sum, y, rstd}, [&] {
      ops.rmsnorm_forward({y, rstd, sum, x, delta, w, 1e-5});
    });
    report("rmsnorm_backward", {x, delta, y, rstd}, [&] { ops.rmsnorm_backward({y, dw, delta, x, rstd, w, {}}); });
    report("rmsnorm_backward residual", {x, delta, sum, y, rstd}, [&] {
      ops.rmsnorm_backward({y, dw, delta, x, rstd, w, sum});
    });
    const auto heads = [&](const Tensor& t) { return t.view({B, T, H, D}); };
    const Tensor z = in({N, C}), dz = out({N, C}), rstd_BTH = sums({B, T, H}), w_HD = w.view({H, D});
    report("gated_norm_forward", {x, z, y, rstd_BTH}, [&] {
      ops.gated_norm_forward({heads(y), rstd_BTH, heads(x), heads(z), w_HD, 1e-5});
    });
    report("gated_norm_backward", {x, z, delta, y, dz, rstd_BTH}, [&] {
      ops.gated_norm_backward({heads(y), heads(dz), dw.view({H, D}), heads(delta), heads(x), heads(z), rstd_BTH, w_HD});
    });
    bench.clear();
  }

  void mlp() {
    const int64_t N = B * T;
    Ops& ops = bench.ops();
    const Tensor gate_up = in({N, 2 * F}), h = in({N, F}), d = out({N, 2 * F});
    report("swiglu_forward", {gate_up, h}, [&] { ops.swiglu_forward({h, gate_up}); });
    report("swiglu_backward", {gate_up, h, d}, [&] { ops.swiglu_backward({d, h, gate_up}); });
    bench.clear();
  }

  void loss() {
    const int64_t N = std::min<int64_t>(B * T, 7680);  // the rows of the head's chunk in the 400M model
    Ops& ops = bench.ops();
    const Tensor logits = bench.uniform({N, V}, kType, -8, 8), max = sums({N}), sum_exp = sums({N}), target = sums({N});
    const Tensor targets = bench.tensor({N}, DType::i32), total = bench.tensor({1}, DType::f64);
    const Tensor count = bench.tensor({1}, DType::f64);
    std::vector<int32_t> ids(static_cast<size_t>(N));
    for (size_t n = 0; n < ids.size(); ++n) ids[n] = static_cast<int32_t>(n * 7919 % static_cast<size_t>(V));
    copy_blocking(targets, Tensor(ids.data(), {N}, DType::i32, Device::cpu));
    ops.fill({total, 0}), ops.fill({count, 0});
    ops.cross_entropy_stats({max, sum_exp, target, logits, targets, 0});
    report("cross_entropy_stats", {logits}, [&] {
      ops.cross_entropy_stats({max, sum_exp, target, logits, targets, 0});
    });
    report("cross_entropy_loss", {max, sum_exp, target, targets}, [&] {
      ops.cross_entropy_loss({total, count, {}, max, sum_exp, target, targets});
    });
    report("cross_entropy_gradient", {logits, logits}, [&] {
      ops.cross_entropy_gradient({logits, max, sum_exp, targets, 0, 1e-4});
    });
    bench.clear();
  }

  void run() {
    copy();
    conv();
    norms();
    mlp();
    loss();
  }
};

}  // namespace
}  // namespace tmamba

int main(int argc, char** argv) {
  using namespace tmamba;
  if (argc != 1 && (argc < 7 || argc > 9)) {
    std::fprintf(stderr, "usage: cuda_elementwise_bench [B T H D F V [REPEATS [OP]]]\n");
    return 2;
  }
  const auto number = [&](int i, int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  try {
    ElementwiseBench{.bench = OpBench(static_cast<int>(number(7, 10))),
                     .B = number(1, 2),
                     .T = number(2, 8192),
                     .H = number(3, 16),
                     .D = number(4, 96),
                     .F = number(5, 4096),
                     .V = number(6, 32768),
                     .only = argc > 8 ? argv[8] : ""}
        .run();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
