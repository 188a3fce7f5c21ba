#include "tests/kernels/op_tools.h"

#include <omp.h>

#include <bit>
#include <cmath>
#include <cstring>

namespace tmamba::test {

namespace {

constexpr double kFloatUnit = 0x1p-24;

// Dimensions of a Tensor from a vector of sizes.
Tensor view_of(void* data, const std::vector<int64_t>& s, DType dtype, Device device) {
  switch (s.size()) {
    case 1:
      return Tensor(data, {s[0]}, dtype, device);
    case 2:
      return Tensor(data, {s[0], s[1]}, dtype, device);
    case 3:
      return Tensor(data, {s[0], s[1], s[2]}, dtype, device);
    case 4:
      return Tensor(data, {s[0], s[1], s[2], s[3]}, dtype, device);
    default:
      throw Error(str("tests use 1 to 4 dimensions, got ", s.size()));
  }
}

uint16_t bf16_bits(double x) {
  const auto single = static_cast<float>(x);
  const uint32_t bits = std::bit_cast<uint32_t>(single);
  if (std::isnan(single)) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

double from_bf16(uint16_t bits) { return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bits) << 16)); }

void store(void* to, int64_t i, DType dtype, double value) {
  switch (dtype) {
    case DType::f64:
      static_cast<double*>(to)[i] = value;
      return;
    case DType::f32:
      static_cast<float*>(to)[i] = static_cast<float>(value);
      return;
    case DType::bf16:
      static_cast<uint16_t*>(to)[i] = bf16_bits(value);
      return;
    case DType::i32:
      static_cast<int32_t*>(to)[i] = static_cast<int32_t>(value);
      return;
    default:
      throw Error(str("tests do not write ", name_of(dtype)));
  }
}

double load(const void* from, int64_t i, DType dtype) {
  switch (dtype) {
    case DType::f64:
      return static_cast<const double*>(from)[i];
    case DType::f32:
      return static_cast<double>(static_cast<const float*>(from)[i]);
    case DType::bf16:
      return from_bf16(static_cast<const uint16_t*>(from)[i]);
    case DType::i32:
      return static_cast<const int32_t*>(from)[i];
    default:
      throw Error(str("tests do not read ", name_of(dtype)));
  }
}

std::vector<int64_t> sizes_of(const Tensor& x) {
  std::vector<int64_t> sizes;
  for (int i = 0; i < x.dims(); ++i) sizes.push_back(x.size(i));
  return sizes;
}

// Calls f(offset in the view's memory, flat index) for every element.
template <class F>
void for_each_element(const Tensor& x, const F& f) {
  for (int64_t flat = 0; flat < x.numel(); ++flat) {
    int64_t rest = flat, offset = 0;
    for (int dim = x.dims() - 1; dim >= 0; --dim) {
      offset += rest % x.size(dim) * x.stride(dim);
      rest /= x.size(dim);
    }
    f(offset, flat);
  }
}

std::string label(const OpCase& c) { return str(c.name, " (seed ", c.seed, ")"); }

}  // namespace

Array::Array(std::vector<int64_t> sizes_in, double value) : sizes(std::move(sizes_in)) {
  size_t count = sizes.empty() ? 0 : 1;
  for (int64_t size : sizes) count *= static_cast<size_t>(size);
  data.assign(count, value);
}

size_t Array::offset(std::initializer_list<int64_t> index) const {
  TM_CHECK(index.size() == sizes.size(), "an array of ", sizes.size(), " dimensions has ", index.size(), " indices");
  int64_t out = 0;
  size_t dim = 0;
  for (int64_t i : index) {
    TM_CHECK(i >= 0 && i < sizes[dim], "index ", i, " of dimension ", dim, " with size ", sizes[dim]);
    out = out * sizes[dim++] + i;
  }
  return static_cast<size_t>(out);
}

Array Array::slice(int dim, int64_t begin, int64_t count) const {
  const auto d = static_cast<size_t>(dim);
  Array out(sizes);
  out.sizes[d] = count;
  out.data.clear();
  int64_t inner = 1, outer = 1;
  for (size_t i = 0; i < sizes.size(); ++i) (i < d ? outer : inner) *= i == d ? 1 : sizes[i];
  for (int64_t o = 0; o < outer; ++o) {
    const auto from = data.begin() + (o * sizes[d] + begin) * inner;
    out.data.insert(out.data.end(), from, from + count * inner);
  }
  return out;
}

Array Random::uniform(std::vector<int64_t> sizes, double low, double high) {
  Array out(std::move(sizes));
  for (double& x : out.data) x = static_cast<double>(static_cast<float>(low + (high - low) * rng_.uniform(counter_++)));
  return out;
}

double dot(const Array& a, const Array& b) {
  TM_CHECK(a.sizes == b.sizes, "dot of arrays of other sizes");
  double sum = 0;
  for (size_t i = 0; i < a.data.size(); ++i) sum += a.data[i] * b.data[i];
  return sum;
}

double norm(const Array& a) { return std::sqrt(dot(a, a)); }

double relative_error(const Array& a, const Array& b) {
  TM_CHECK(a.sizes == b.sizes, "arrays of other sizes");
  Array difference = a;
  for (size_t i = 0; i < a.data.size(); ++i) difference.data[i] -= b.data[i];
  const double size = norm(b);
  return norm(difference) / (size > 0 ? size : 1.0);
}

double round_bf16(double x) { return from_bf16(bf16_bits(x)); }

Array round_bf16(Array x) {
  for (double& value : x.data) value = round_bf16(value);
  return x;
}

Tensor PaddedTensors::make(const Array& x, DType dtype) {
  if (x.sizes.empty()) return {};
  // An int32 or 1-D tensor is contiguous by the rules of ops.h.
  std::vector<int64_t> padded = x.sizes;
  for (size_t dim = 1; dim < padded.size(); ++dim) padded[dim] += pad_;
  int64_t count = 1;
  for (int64_t size : padded) count *= size;
  Storage& s = storage_.emplace_back();
  s.buffer = Buffer(std::max<size_t>(static_cast<size_t>(count) * size_of(dtype), 1), ops_.device());
  s.whole = view_of(s.buffer.data(), padded, dtype, ops_.device());
  s.view = s.whole;
  for (size_t dim = 1; dim < padded.size(); ++dim) s.view = s.view.slice(static_cast<int>(dim), 0, x.sizes[dim]);

  Buffer host(s.buffer.bytes(), Device::cpu);
  for (int64_t i = 0; i < count; ++i) store(host.data(), i, dtype, kPadding);
  for_each_element(s.view, [&](int64_t offset, int64_t flat) {
    store(host.data(), offset, dtype, x.data[static_cast<size_t>(flat)]);
  });
  copy_blocking(s.whole, view_of(host.data(), padded, dtype, Device::cpu));
  return s.view;
}

const PaddedTensors::Storage& PaddedTensors::storage_of(const Tensor& x) const {
  for (const Storage& s : storage_) {
    if (s.view.raw() == x.raw() && s.view.shape() == x.shape() && s.view.dtype() == x.dtype()) return s;
  }
  throw Error(str("tensor ", x.shape(), " was not made here"));
}

Buffer PaddedTensors::to_host(const Storage& s) const {
  Buffer host(s.buffer.bytes(), Device::cpu);
  copy_blocking(view_of(host.data(), sizes_of(s.whole), s.whole.dtype(), Device::cpu), s.whole);
  return host;
}

Array PaddedTensors::read(const Tensor& x) {
  ops_.synchronize();
  const Storage& s = storage_of(x);
  const Buffer host = to_host(s);
  Array out(sizes_of(x));
  for_each_element(s.view, [&](int64_t offset, int64_t flat) {
    out.data[static_cast<size_t>(flat)] = load(host.data(), offset, x.dtype());
  });
  return out;
}

void PaddedTensors::expect_padding_untouched() {
  ops_.synchronize();
  for (const Storage& s : storage_) {
    const Buffer host = to_host(s);
    std::vector<bool> element(static_cast<size_t>(s.whole.numel()));
    for_each_element(s.view, [&](int64_t offset, int64_t) { element[static_cast<size_t>(offset)] = true; });
    int64_t touched = 0;
    for (int64_t i = 0; i < s.whole.numel(); ++i) {
      touched += !element[static_cast<size_t>(i)] && load(host.data(), i, s.whole.dtype()) != kPadding;
    }
    EXPECT_EQ(touched, 0) << "elements between those of a tensor " << s.view.shape() << " were written";
  }
}

Array Runner::get_added(const Tensor& x) {
  Array out = get(x);
  for (double& value : out.data) value -= kStart;
  return out;
}

Ops& test_ops() {
  static const std::unique_ptr<Ops> ops = make_ops(Device::cpu);
  return *ops;
}

Arrays run(const OpCase& c, DType dtype, int64_t pad) {
  Runner runner(test_ops(), dtype, pad);
  Arrays out = c.run(runner);
  if (pad > 0) runner.expect_padding_untouched();
  return out;
}

void check_reference(const OpCase& c, double tolerance) {
  const Arrays got = run(c, DType::f64);
  for (const auto& [name, expected] : c.reference()) {
    ASSERT_TRUE(got.contains(name)) << label(c) << " has no output " << name;
    EXPECT_LT(relative_error(got.at(name), expected), tolerance) << label(c) << ": " << name;
  }
}

namespace {

double projection(const OpCase& c) {
  const Arrays out = run(c, DType::f64);
  double sum = 0;
  for (const auto& [name, weights] : c.in) {
    if (name.rfind("grad_", 0) == 0 && !weights.sizes.empty()) sum += dot(out.at(name.substr(5)), weights);
  }
  return sum;
}

// Derivative of L along `direction` of input `name`.
double finite_difference(OpCase& c, const std::string& name, const Array& direction) {
  constexpr double kStep = 1e-3;
  const Array start = c.in.at(name);
  const auto at = [&](double step) {
    Array& x = c.in.at(name);
    for (size_t i = 0; i < x.data.size(); ++i) x.data[i] = start.data[i] + step * direction.data[i];
    const double value = projection(c);
    x = start;
    return value;
  };
  return (8 * (at(kStep) - at(-kStep)) - (at(2 * kStep) - at(-2 * kStep))) / (12 * kStep);
}

}  // namespace

void check_gradients(OpCase& c, double tolerance) {
  const Arrays out = run(c, DType::f64);
  Random random(c.seed + 1);
  int checked = 0;
  for (const std::string& name : [&] {
         std::vector<std::string> names;
         for (const auto& [key, x] : c.in) {
           if (!x.data.empty() && out.contains("d" + key)) names.push_back(key);
         }
         return names;
       }()) {
    const Array& gradient = out.at("d" + name);
    for (int repeat = 0; repeat < 2; ++repeat) {
      Array direction = random.uniform(gradient.sizes);
      const double length = norm(direction);
      for (double& x : direction.data) x /= length;
      const double expected = finite_difference(c, name, direction), got = dot(gradient, direction);
      const double size = norm(gradient) / std::sqrt(static_cast<double>(gradient.numel()));
      EXPECT_NEAR(got, expected, tolerance * std::max(1.0, std::max(size, std::abs(expected))))
          << label(c) << ": d" << name;
      ++checked;
    }
  }
  EXPECT_GT(checked, 0) << label(c) << " has no gradient";
}

void expect_same_bits(const Arrays& a, const Arrays& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (const auto& [name, x] : a) {
    const Array& y = b.at(name);
    ASSERT_EQ(x.sizes, y.sizes) << what << ": " << name;
    const bool same = x.data.empty() || std::memcmp(x.data.data(), y.data.data(), x.data.size() * sizeof(double)) == 0;
    EXPECT_TRUE(same) << what << ": " << name << " differs by " << relative_error(x, y);
  }
}

void check_variants(const OpCase& c, double units) {
  const Arrays f64 = run(c, DType::f64), f32 = run(c, DType::f32);
  for (const auto& [name, exact] : f64) {
    const double error = relative_error(f32.at(name), exact);
    EXPECT_LT(error, units * kFloatUnit) << label(c) << ": float32 " << name;
    EXPECT_FALSE(std::isnan(error)) << label(c) << ": " << name;
  }
  expect_same_bits(run(c, DType::f64, 3), f64, label(c) + ": padded float64");
  expect_same_bits(run(c, DType::f32, 3), f32, label(c) + ": padded float32");
  const int threads = omp_get_max_threads();
  for (int count : {1, 2, 3}) {
    omp_set_num_threads(count);
    expect_same_bits(run(c, DType::f32), f32, str(label(c), ": ", count, " threads"));
  }
  omp_set_num_threads(threads);
}

}  // namespace tmamba::test
