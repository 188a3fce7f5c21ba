#include <cmath>
#include <cstring>

#include "kernels/base/bf16.h"
#include "tests/kernels/op_tools.h"

namespace tmamba::test {
namespace {

const std::vector<std::vector<int64_t>> kSizes{{1}, {17000}, {3, 5}, {2, 3, 4, 5}, {2, 1, 40000}, {200, 30, 7}, {0, 4}};

TEST(Elementwise, FillScaleCopyAdd) {
  for (int64_t pad : {0, 3}) {
    for (const auto& sizes : kSizes) {
      for (DType to : {DType::f32, DType::f64}) {
        for (DType from : {DType::f32, DType::f64}) {
          Random random(20);
          const Array x = random.uniform(sizes), y = random.uniform(sizes);
          Runner r(test_ops(), DType::f64, pad);
          const Tensor x_tensor = r.make(x, from), copied = r.make(Array(sizes, NAN), to), sum = r.make(y, to),
                       filled = r.make(Array(sizes, NAN), to);
          r.ops().copy({copied, x_tensor});
          r.ops().add({sum, x_tensor});
          r.ops().fill({filled, -1.5});
          const Array sum_now = r.get(sum);
          r.ops().scale({sum, -0.5});
          const Array scaled = r.get(sum);
          EXPECT_EQ(relative_error(r.get(copied), x), 0.0);
          for (size_t i = 0; i < x.data.size(); ++i) {
            const double exact = x.data[i] + y.data[i];
            const double expected = to == DType::f32 ? static_cast<double>(static_cast<float>(exact)) : exact;
            ASSERT_EQ(sum_now.data[i], expected);
            ASSERT_EQ(scaled.data[i], -0.5 * expected);
          }
          EXPECT_EQ(relative_error(r.get(filled), Array(sizes, -1.5)), 0.0);
          r.expect_padding_untouched();
        }
      }
    }
  }
}

TEST(Elementwise, Bfloat16) {
  Random random(21);
  const Array x = random.uniform({1000}, -100, 100);
  Buffer buffer({1000}, DType::bf16);
  const Tensor half = buffer.tensor({1000}, DType::bf16);
  Runner r(test_ops(), DType::f32);
  const Tensor back = r.out({1000});
  r.ops().copy({half, r.in(x)});
  r.ops().copy({back, half});
  EXPECT_LT(relative_error(r.get(back), x), 0x1p-9);
  for (int64_t i = 0; i < 1000; ++i) EXPECT_LE(std::abs(r.get(back)(i) - x(i)), std::abs(x(i)) * 0x1p-8);
  r.ops().add({half, half});
  r.ops().copy({back, half});
  const Array doubled = r.get(back);
  r.ops().scale({half, 0.5});
  r.ops().copy({back, half});
  for (int64_t i = 0; i < 1000; ++i) EXPECT_EQ(doubled(i), 2 * r.get(back)(i));
}

// Ties go to the even neighbour, overflow to infinity, a NaN stays one even if its payload is in the dropped bits.
TEST(Elementwise, Bfloat16Rounding) {
  EXPECT_EQ(to_bf16(1.0f + 0x1p-8f).bits, 0x3F80);
  EXPECT_EQ(to_bf16(1.0f + 3 * 0x1p-8f).bits, 0x3F82);
  EXPECT_EQ(to_bf16(1.0f + 0x1p-8f + 0x1p-20f).bits, 0x3F81);
  EXPECT_EQ(to_bf16(3.4e38f).bits, 0x7F80);
  EXPECT_EQ(to_bf16(-0.0f).bits, 0x8000);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7F800001u)))));
}

TEST(Elementwise, SumOfSquares) {
  Random random(22);
  const Array a = random.uniform({100, 33}), b = random.uniform({70000});
  const double expected = dot(a, a) + dot(b, b);
  for (DType dtype : {DType::f32, DType::f64}) {
    Runner r(test_ops(), dtype);
    const Tensor out = r.make(Array({1}, NAN), DType::f64);
    const std::vector<ConstTensor> tensors{r.in(a), r.in(Array({0})), r.in(b)};
    r.ops().sum_squares({out, tensors});
    EXPECT_NEAR(r.get(out)(0) / expected, 1, 1e-12);
    r.ops().sum_squares({out, {}});
    EXPECT_EQ(r.get(out)(0), 0.0);
  }
  const std::vector<bf16_t> stored(20000, to_bf16(-1.5f));  // weights are in bfloat16 on GPUs
  double sum = 0;
  const std::vector<ConstTensor> tensors{ConstTensor(stored.data(), {20000}, DType::bf16)};
  test_ops().sum_squares({Tensor(&sum, {1}, DType::f64), tensors});
  EXPECT_EQ(sum, 20000 * 2.25);
}

TEST(Elementwise, RefusesOtherSizes) {
  Runner r(test_ops(), DType::f32);
  EXPECT_THROW(r.ops().copy({r.out({2, 3}), r.in(Array({3, 2}))}), Error);
  EXPECT_THROW(r.ops().add({r.out({6}), r.in(Array({2, 3}))}), Error);
  EXPECT_THROW(r.ops().fill({r.ints(Array({6})), 1}), Error);
}

}  // namespace
}  // namespace tmamba::test
