// The convolution and RoPE on the GPU against the CPU in float64.
#include <cmath>

#include "tests/kernels/cuda/cuda_tools.h"

namespace tmamba::test {
namespace {

TEST(CudaConv, ForwardAndBackward) {
  struct Sizes {
    int64_t B, T, C, W;
    bool halo;
  };
  for (const auto& [B, T, C, W, halo] :
       {Sizes{1, 1, 1, 4, false}, Sizes{2, 45, 24, 4, false}, Sizes{2, 45, 24, 4, true}, Sizes{1, 2, 8, 4, true},
        Sizes{1, 300, 520, 4, true}, Sizes{2, 257, 96, 4, false}, Sizes{1, 70, 40, 1, false}, Sizes{1, 70, 40, 2, true},
        Sizes{1, 70, 11, 8, true}, Sizes{1, 0, 8, 4, true}}) {
    Inputs inputs(7);
    const Array x = inputs.bf16({B, T, C}), w = inputs.bf16({C, W}), b = inputs.bf16({C}), dy = inputs.bf16({B, T, C});
    const Array before = halo ? inputs.bf16({B, W - 1, C}) : Array();
    const Array dw_start = inputs.bf16({C, W}), db_start = inputs.bf16({C});
    check_body({.name = str("conv B ", B, " T ", T, " C ", C, " W ", W, halo ? " halo" : "")}, [&](Tensors& t) {
      const Tensor y = t.out({B, T, C}), dx = t.out({B, T, C}), dw = t.in_acc(dw_start), db = t.in_acc(db_start);
      const Tensor dhalo = halo ? t.out({B, W - 1, C}) : Tensor();
      const Tensor input = t.in(x), rows = t.in(before), taps = t.in(w), bias = t.in(b);
      t.ops().conv_silu_forward({y, input, rows, taps, bias});
      t.ops().conv_silu_backward({dx, dhalo, dw, db, t.in(dy), input, rows, taps, bias});
      t.result("y", y), t.result("dx", dx), t.result("dw", dw), t.result("db", db);
      if (halo) t.result("dhalo", dhalo);
    });
  }
}

TEST(CudaConv, RefusesMoreTapsThanItHas) {
  Tensors t(gpu(), DType::f32, 0);
  EXPECT_THROW(
      gpu().conv_silu_forward({t.out({1, 4, 8}), t.in(Array({1, 4, 8})), {}, t.in(Array({8, 9})), t.in(Array({8}))}),
      Error);
}

// With RoPE: head widths that the kernel rotates itself (multiples of 32 channels, up to 256) and others; prefixes that
// end within a strip, within a tile, and at the end of the sequence.
TEST(CudaConv, WithRope) {
  struct Sizes {
    int64_t B, T, H, D, W, prefix, position;
    bool halo, apart;
  };
  for (const auto& [B, T, H, D, W, P, position, halo, apart] :
       {Sizes{1, 1, 1, 32, 4, 1, 0, false, true}, Sizes{2, 45, 3, 96, 4, 45, 0, true, false},
        Sizes{1, 300, 2, 96, 4, 133, 1000, true, true}, Sizes{2, 260, 1, 64, 4, 128, 0, false, true},
        Sizes{1, 140, 2, 128, 4, 3, 7, true, true}, Sizes{1, 131, 1, 32, 7, 130, 1000000, true, false},
        Sizes{1, 90, 2, 192, 4, 40, 11, true, true}, Sizes{1, 70, 1, 288, 4, 33, 2, true, true},
        Sizes{2, 2100, 1, 32, 4, 1500, 3, true, true}, Sizes{1, 70, 3, 24, 4, 33, 5, true, true},
        Sizes{1, 20, 1, 8, 4, 20, 0, false, false}, Sizes{2, 40, 2, 64, 4, 0, 0, true, false},
        Sizes{1, 0, 2, 32, 4, 0, 0, true, false}}) {
    Inputs inputs(18);
    const int64_t C = 3 * H * D;
    const Array x = inputs.bf16({B, T, C}), w = inputs.bf16({C, W}), b = inputs.bf16({C}), dy = inputs.bf16({B, T, C});
    const Array before = halo ? inputs.bf16({B, W - 1, C}) : Array();
    const Array dk = apart ? inputs.bf16({B, P, H, D}) : Array();
    const Array dw_start = inputs.bf16({C, W}), db_start = inputs.bf16({C});
    // In separate passes bfloat16 rounds the gradients in between. Float64 angles are exact to 1e-10 turns.
    Check check{.name = str("conv_rope T ", T, " H ", H, " D ", D, " W ", W, " P ", P, apart ? " keys apart" : ""),
                .f64_error = 1e-9};
    if (D % 32 != 0 || D > 256) check.acc_error = 4e-3;
    check_body(check, [&](Tensors& t) {
      const Tensor y = t.out({B, T, C}), dx = t.out({B, T, C}), dw = t.in_acc(dw_start), db = t.in_acc(db_start);
      const Tensor dhalo = halo ? t.out({B, W - 1, C}) : Tensor(), k_rot = apart ? t.out({B, P, H, D}) : Tensor();
      const Tensor input = t.in(x), rows = t.in(before), taps = t.in(w), bias = t.in(b);
      t.ops().conv_silu_rope_forward({y, k_rot, input, rows, taps, bias, H, P, position, 10000.0});
      t.ops().conv_silu_rope_backward(
          {dx, dhalo, dw, db, t.in(dy), t.in(dk), input, rows, taps, bias, H, P, position, 10000.0});
      t.result("y", y), t.result("dx", dx), t.result("dw", dw), t.result("db", db);
      if (halo) t.result("dhalo", dhalo);
      if (apart) t.result("k_rot", k_rot);
    });
  }
}

TEST(CudaRope, ForwardAndBackward) {
  struct Sizes {
    int64_t B, T, H, D, position;
  };
  for (const auto& [B, T, H, D, position] :
       {Sizes{1, 1, 1, 2, 0}, Sizes{2, 45, 3, 96, 0}, Sizes{1, 70, 17, 64, 1000}, Sizes{2, 33, 2, 10, 5},
        Sizes{1, 9, 4, 128, 1000000}, Sizes{1, 0, 2, 8, 0}}) {
    Inputs inputs(8);
    const Array x = inputs.bf16({B, T, H, D}), dy = inputs.bf16({B, T, H, D});
    // Float64 angles, up to 1e6, are exact to 1e-10 turns.
    const Check check{.name = str("rope T ", T, " H ", H, " D ", D, " from ", position), .f64_error = 1e-9};
    check_body(check, [&](Tensors& t) {
      const Tensor y = t.out({B, T, H, D}), in_place = t.in(dy), dx = t.out({B, T, H, D});
      t.ops().rope_forward({y, t.in(x), position, 10000.0});
      t.ops().rope_backward({dx, in_place, position, 10000.0});
      t.ops().rope_forward({in_place, in_place, position, 10000.0});
      t.result("y", y), t.result("dx", dx), t.result("in_place", in_place);
    });
  }
}

}  // namespace
}  // namespace tmamba::test
