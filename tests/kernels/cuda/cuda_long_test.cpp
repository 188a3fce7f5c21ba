// A sequence of 1,000,003 tokens: the ends of each op's results along the sequence, against the CPU in float64.
#include "tests/kernels/cuda/cuda_tools.h"

namespace tmamba::test {
namespace {

constexpr int64_t T = 1'000'003, H = 1, D = 64, C = 3 * H * D, kEnd = 65;

// The last kEnd tokens of a tensor [1, T, ..].
Array end_of(Tensors& t, const Tensor& x) {
  std::vector<int64_t> sizes{1, kEnd};
  for (int i = 2; i < x.dims(); ++i) sizes.push_back(x.size(i));
  const Tensor end = t.out(sizes);
  t.ops().copy({end, x.slice(1, T - kEnd, kEnd)});
  return t.read(end);
}

struct Long {
  Inputs inputs{77};
  Array x = inputs.bf16({1, T, C}), taps = inputs.bf16({C, 4}), bias = inputs.bf16({C}), dy = inputs.bf16({1, T, C});
  Array dt = inputs.f32({1, T, H}, 0.01, 0.2), log_a = inputs.f32({1, T, H}, -0.05, -0.001);
  Array grad = inputs.bf16({1, kEnd, H, D});

  Arrays run(Ops& ops, DType dtype) const {
    Tensors t(ops, dtype, 0);
    Arrays results;
    // RoPE applies to all tokens: angles up to position one million, in the longest strips that the kernels use.
    const Tensor pre = t.in(x), qkv = t.out({1, T, C}), k = t.out({1, T, H, D});
    ops.conv_silu_rope_forward({qkv, k, pre, {}, t.in(taps), t.in(bias), H, T, 0, 1e4});
    results["conv"] = end_of(t, qkv), results["rope"] = end_of(t, k);
    const Tensor dpre = t.out({1, T, C}), dtaps = t.in_acc(Array({C, 4})), dbias = t.in_acc(Array({C}));
    ops.conv_silu_rope_backward({dpre, {}, dtaps, dbias, t.in(dy), {}, pre, {}, t.in(taps), t.in(bias), H, T, 0, 1e4});
    results["conv gradient"] = end_of(t, dpre), results["taps' gradient"] = t.read(dtaps);

    const auto part = [&](int64_t which) { return qkv.slice(2, which * H * D, H * D).split(2, H, D); };
    const Tensor state = t.out_acc({1, H, D, D}), y = t.out({1, T, H, D});
    ops.ssd_forward({.y_BTHD = y,
                     .final_state_BHKD = state,
                     .q_BTHD = part(0),
                     .k_BTHD = part(1),
                     .v_BTHD = part(2),
                     .dt_BTH = t.in_acc(dt),
                     .log_a_BTH = t.in_acc(log_a),
                     .chunk = 64});
    results["state"] = t.read(state), results["ssd"] = end_of(t, y);

    // The last queries attend to all keys.
    const Tensor q = t.out({1, kEnd, H, D}), o = t.out({1, kEnd, H, D});
    const Tensor lse = t.out_acc({1, kEnd, H}), dq = t.out({1, kEnd, H, D});
    ops.copy({q, part(0).slice(1, T - kEnd, kEnd)});
    ops.attention_forward({o, lse, q, k, part(2), T - kEnd, 0.125});
    results["attention"] = t.read(o), results["lse"] = t.read(lse);
    const Tensor dk = t.in(Array({1, T, H, D})), dv = t.in(Array({1, T, H, D}));
    ops.attention_backward({dq, dk, dv, t.in(grad), o, lse, q, k, part(2), T - kEnd, 0.125});
    results["queries' gradient"] = t.read(dq), results["keys' gradient"] = end_of(t, dk);
    return results;
  }
};

TEST(CudaLong, AMillionAndThreeTokens) {
  const Long sequence;
  const Arrays expected = sequence.run(cpu(), DType::f64);
  // Bfloat16 rounds each op's output; in a sum over all tokens these errors add up.
  for (const auto& [dtype, tolerance] : {std::pair{DType::f32, 1e-4}, std::pair{DType::bf16, 3e-2}}) {
    for (const auto& [name, array] : sequence.run(gpu(), dtype)) {
      // With a million keys of similar weight a query's gradient is the difference of sums 600 times larger, which
      // amplifies errors as much: rounding keys to bfloat16 changes the gradient by a fifth, and the 1e-6 that float32
      // loses in the output, summed tile by tile, by up to 1e-3.
      const bool cancels = name == "queries' gradient";
      EXPECT_LE(relative_error(array, expected.at(name)), cancels ? 10 * tolerance : tolerance)
          << name << " in " << name_of(dtype);
    }
  }
}

}  // namespace
}  // namespace tmamba::test
