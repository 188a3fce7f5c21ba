#include "tests/kernels/cuda/cuda_tools.h"

#include <cmath>
#include <cstdlib>

namespace tmamba::test {

Array Inputs::tokens(int64_t count, int64_t begin, int64_t end) {
  Array out = random_.uniform({count}, static_cast<double>(begin), static_cast<double>(end));
  for (double& token : out.data) token = std::min(std::floor(token), static_cast<double>(end - 1));
  return out;
}

std::map<std::string, Tensors::Result> Tensors::results() {
  expect_padding_untouched();
  std::map<std::string, Result> out;
  for (const auto& [name, x] : results_) out[name] = {read(x), x.dtype()};
  return out;
}

namespace {

std::map<std::string, Tensors::Result> run(Ops& ops, const Body& body, DType dtype, int64_t pad) {
  Tensors tensors(ops, dtype, pad);
  body(tensors);
  return tensors.results();
}

void expect_equal(const std::map<std::string, Tensors::Result>& a, const std::map<std::string, Tensors::Result>& b,
                  const std::string& what) {
  Arrays a_arrays, b_arrays;
  for (const auto& [name, x] : a) a_arrays[name] = x.array;
  for (const auto& [name, x] : b) b_arrays[name] = x.array;
  expect_same_bits(a_arrays, b_arrays, what);
}

// The largest allowed error of a GPU result.
double limit_of(const Check& check, const std::string& name, DType activation, DType result, const Array& exact,
                const Arrays& plain) {
  if (result == DType::f64) return activation == DType::f64 ? check.f64_error : 1e-6;
  if (activation == DType::f32) return check.f32_units * 0x1p-24;
  double limit = result == DType::bf16 ? 0 : check.acc_error;
  if (plain.contains(name)) return std::max(limit, 2 * relative_error(plain.at(name), exact));
  if (result == DType::bf16) limit = 2 * relative_error(round_bf16(exact), exact);
  // If bfloat16 holds the exact values, twice their error is zero.
  return std::max(limit, 1e-6);
}

}  // namespace

void check_body(const Check& check, const Body& body) {
  const auto exact = run(cpu(), body, DType::f64, 0);
  const Arrays plain = check.plain ? check.plain() : Arrays();
  ASSERT_FALSE(exact.empty()) << check.name << " has no result";
  for (DType dtype : check.types) {
    const std::string what = str(check.name, " ", name_of(dtype));
    const auto got = run(gpu(), body, dtype, 0);
    for (const auto& [name, x] : got) {
      const Array& expected = exact.at(name).array;
      const double error = relative_error(x.array, expected);
      const double limit = limit_of(check, name, dtype, x.dtype, expected, plain);
      EXPECT_LE(error, limit) << what << ": " << name;
      EXPECT_FALSE(std::isnan(error)) << what << ": " << name;
    }
    // Under a sanitizer each kernel and layout runs once; runs without it check for equal bits.
    const bool once = std::getenv("TMAMBA_TEST_ONCE") != nullptr;
    if (!once) expect_equal(run(gpu(), body, dtype, 0), got, what + ": second run");
    for (int64_t pad : once ? std::vector<int64_t>{3} : std::vector<int64_t>{3, 8}) {
      const auto padded = run(gpu(), body, dtype, pad);
      if (check.padded_same) {
        expect_equal(padded, got, str(what, ": padded by ", pad));
        continue;
      }
      for (const auto& [name, x] : padded) {
        const Array& expected = exact.at(name).array;
        EXPECT_LE(relative_error(x.array, expected), limit_of(check, name, dtype, x.dtype, expected, plain))
            << what << ": " << name << " padded by " << pad;
      }
    }
  }
}

bool too_large(int64_t pairs) { return std::getenv("TMAMBA_TEST_SMALL") != nullptr && pairs > 10000; }

Ops& gpu() {
  static const std::unique_ptr<Ops> ops = make_ops(Device::cuda);
  return *ops;
}

Ops& cpu() {
  static const std::unique_ptr<Ops> ops = make_ops(Device::cpu);
  return *ops;
}

}  // namespace tmamba::test
