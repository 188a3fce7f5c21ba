#include "tests/dist/comm/collective_tools.h"

#include <bit>
#include <cmath>
#include <numeric>

#include "kernels/base/rng.h"
#include "tests/dist/comm/mpi_main.h"

namespace tmamba {

bf16_t to_bf16(double x) { return {static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16)}; }
double from_bf16(bf16_t x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

double get(const ConstTensor& x, int64_t i) {
  switch (x.dtype()) {
    case DType::f32:
      return x.data<float>()[i];
    case DType::f64:
      return x.data<double>()[i];
    case DType::bf16:
      return from_bf16(x.data<bf16_t>()[i]);
    case DType::i32:
      return x.data<int32_t>()[i];
    case DType::i64:
      return static_cast<double>(x.data<int64_t>()[i]);
    case DType::u16:
      return x.data<uint16_t>()[i];
    case DType::u8:
      return x.data<uint8_t>()[i];
  }
  return NAN;
}

void set(const Tensor& x, int64_t i, double value) {
  switch (x.dtype()) {
    case DType::f32:
      x.data<float>()[i] = static_cast<float>(value);
      break;
    case DType::f64:
      x.data<double>()[i] = value;
      break;
    case DType::bf16:
      x.data<bf16_t>()[i] = to_bf16(value);
      break;
    case DType::i32:
      x.data<int32_t>()[i] = static_cast<int32_t>(value);
      break;
    case DType::i64:
      x.data<int64_t>()[i] = static_cast<int64_t>(value);
      break;
    case DType::u16:
      x.data<uint16_t>()[i] = static_cast<uint16_t>(value);
      break;
    case DType::u8:
      x.data<uint8_t>()[i] = static_cast<uint8_t>(value);
      break;
  }
}

std::vector<char> bits(const ConstTensor& x) {
  std::vector<char> bytes(static_cast<size_t>(x.bytes()));
  if (!bytes.empty()) {
    copy_blocking(Tensor(bytes.data(), {x.bytes()}, DType::u8),
                  ConstTensor(x.raw(), {x.bytes()}, DType::u8, x.device()));
  }
  return bytes;
}

std::vector<double> values(const ConstTensor& x) {
  const std::vector<char> bytes = bits(x);
  const ConstTensor host(bytes.data(), {x.numel()}, x.dtype());
  std::vector<double> out;
  for (int64_t i = 0; i < x.numel(); ++i) out.push_back(get(host, i));
  return out;
}

Vector::Vector(int64_t n, DType dtype, const std::function<double(int64_t)>& f)
    : buffer({n}, dtype, test_device()), x(buffer.tensor({n}, dtype)) {
  if (!f) return;
  const Buffer filled({n}, dtype);
  const Tensor host = filled.tensor({n}, dtype);
  for (int64_t i = 0; i < n; ++i) set(host, i, f(i));
  copy_blocking(x, host);
}

std::vector<int64_t> uneven_counts(int size) {
  std::vector<int64_t> counts;
  for (int r = 0; r < size; ++r) counts.push_back(r % 3 == 1 ? 0 : 1000 * r + 7);
  return counts;
}

std::vector<int64_t> even_counts(int size, int64_t count) {
  return std::vector<int64_t>(static_cast<size_t>(size), count);
}

int64_t total(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

int64_t begin_of(const std::vector<int64_t>& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

float wild(uint64_t seed, int rank, int64_t i) {
  const Philox random(seed, static_cast<uint64_t>(rank));
  return static_cast<float>(random.normal(static_cast<uint64_t>(i)) *
                            std::pow(10.0, 6 * random.uniform(static_cast<uint64_t>(i) + 1000000)));
}

}  // namespace tmamba
