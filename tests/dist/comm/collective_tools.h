// Vectors for tests of collectives, on the device of the communicator under test, and their contents as numbers.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "dist/comm/communicator.h"
#include "kernels/base/buffer.h"
#include "tests/dist/error_of.h"

namespace tmamba {

bf16_t to_bf16(double x);
double from_bf16(bf16_t x);

// Element i of a host tensor of any type. The tests use integers up to 255, exact in every type.
double get(const ConstTensor& x, int64_t i);
void set(const Tensor& x, int64_t i, double value);

// The elements of a tensor on any device; waits for what is ordered before a blocking copy.
std::vector<double> values(const ConstTensor& x);
// The same as bytes.
std::vector<char> bits(const ConstTensor& x);

// A vector with its memory, where the communicator under test works: element i is f(i), or 0.
struct Vector {
  Vector(int64_t n, DType dtype, const std::function<double(int64_t)>& f = {});
  Buffer buffer;
  Tensor x;
};

// What rank `rank` holds at i: at most 7, so that sums over 8 ranks stay exact in bfloat16 and uint8.
inline double term(int rank, int64_t i) { return static_cast<double>((3 * rank + i) % 8); }

// A different number of elements on every rank, none on some.
std::vector<int64_t> uneven_counts(int size);
// The same number on every rank.
std::vector<int64_t> even_counts(int size, int64_t count);
int64_t total(const std::vector<int64_t>& counts);
// Where the piece of a rank begins.
int64_t begin_of(const std::vector<int64_t>& counts, int rank);

// Numbers of very different size, so that another order of their sum has other bits.
float wild(uint64_t seed, int rank, int64_t i);

}  // namespace tmamba
