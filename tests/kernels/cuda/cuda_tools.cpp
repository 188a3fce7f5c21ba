#include "tests/kernels/cuda/cuda_tools.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace tmamba::test {

namespace {

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

}  // namespace

double round_bf16(double x) { return from_bf16(bf16_bits(x)); }

Array round_bf16(Array x) {
  for (double& value : x.data) value = round_bf16(value);
  return x;
}

Array Inputs::tokens(int64_t count, int64_t begin, int64_t end) {
  Array out = random_.uniform({count}, static_cast<double>(begin), static_cast<double>(end));
  for (double& token : out.data) token = std::min(std::floor(token), static_cast<double>(end - 1));
  return out;
}

Tensor Tensors::make(const Array& x, DType dtype) {
  if (x.sizes.empty()) return {};
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

const Tensors::Storage& Tensors::storage_of(const Tensor& x) const {
  for (const Storage& s : storage_) {
    if (s.view.raw() == x.raw() && s.view.shape() == x.shape() && s.view.dtype() == x.dtype()) return s;
  }
  throw Error(str("tensor ", x.shape(), " is not of this run"));
}

Buffer Tensors::to_host(const Storage& s) const {
  Buffer host(s.buffer.bytes(), Device::cpu);
  copy_blocking(view_of(host.data(), sizes_of(s.whole), s.whole.dtype(), Device::cpu), s.whole);
  return host;
}

Array Tensors::read(const Tensor& x) {
  ops_.synchronize();
  const Storage& s = storage_of(x);
  const Buffer host = to_host(s);
  Array out(sizes_of(x));
  for_each_element(s.view, [&](int64_t offset, int64_t flat) {
    out.data[static_cast<size_t>(flat)] = load(host.data(), offset, x.dtype());
  });
  return out;
}

std::map<std::string, Tensors::Result> Tensors::results() {
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

// The error that a result of the GPU may have.
double limit_of(const Check& check, const std::string& name, DType activation, DType result, const Array& exact,
                const Arrays& plain) {
  if (result == DType::f64) return activation == DType::f64 ? check.f64_error : 1e-6;
  if (activation == DType::f32) return check.f32_units * 0x1p-24;
  double limit = result == DType::bf16 ? 0 : check.acc_error;
  if (plain.contains(name)) return std::max(limit, 2 * relative_error(plain.at(name), exact));
  if (result == DType::bf16) limit = 2 * relative_error(round_bf16(exact), exact);
  // Numbers that bfloat16 holds exactly leave nothing to double.
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
    // Under a sanitizer every kernel and layout once is enough; equal bits are what runs without it check.
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

Ops& gpu() {
  static const std::unique_ptr<Ops> ops = make_ops(Device::cuda);
  return *ops;
}

Ops& cpu() {
  static const std::unique_ptr<Ops> ops = make_ops(Device::cpu);
  return *ops;
}

}  // namespace tmamba::test
