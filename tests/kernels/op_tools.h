// What the tests of the ops share: arrays in float64, a runner that hands them to an op in any type and layout, and
// the checks that every op must pass.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/rng.h"
#include "kernels/ops/ops.h"
#include "kernels/ops/step_scalars.h"

namespace tmamba::test {

// A row-major array of float64.
struct Array {
  std::vector<int64_t> sizes;
  std::vector<double> data;

  Array() = default;
  explicit Array(std::vector<int64_t> sizes_in, double value = 0.0);
  int64_t numel() const { return static_cast<int64_t>(data.size()); }
  template <class... Index>
  double& operator()(Index... index) {
    return data[offset({static_cast<int64_t>(index)...})];
  }
  template <class... Index>
  double operator()(Index... index) const {
    return data[offset({static_cast<int64_t>(index)...})];
  }
  // Elements [begin, begin + count) of dimension `dim`.
  Array slice(int dim, int64_t begin, int64_t count) const;

 private:
  size_t offset(std::initializer_list<int64_t> index) const;
};

using Arrays = std::map<std::string, Array>;

// A struct of scalars (step_scalars.h) as an array.
template <StructOfDoubles Scalars>
Array array_of(const Scalars& scalars) {
  Array out({kScalars<Scalars>});
  std::memcpy(out.data.data(), &scalars, sizeof(scalars));
  return out;
}

// Random arrays of float32 numbers, so that float32 and float64 runs see the same inputs. One seed, printed by
// the checks below when they fail.
class Random {
 public:
  explicit Random(uint64_t seed) : rng_(seed, stream_id("op tests")), seed_(seed) {}
  Array uniform(std::vector<int64_t> sizes, double low = -1.0, double high = 1.0);
  uint64_t seed() const { return seed_; }

 private:
  Philox rng_;
  uint64_t seed_;
  uint64_t counter_ = 0;
};

double dot(const Array& a, const Array& b);
double norm(const Array& a);
// |a - b| / |b|, or |a - b| where b is zero.
double relative_error(const Array& a, const Array& b);

// To the nearest bfloat16, ties to even.
double round_bf16(double x);
Array round_bf16(Array x);

// Arrays as tensors on the device of some ops. With `pad` > 0 every dimension but the first is laid out with `pad`
// elements too many, so that no tensor is contiguous.
class PaddedTensors {
 public:
  PaddedTensors(Ops& ops, int64_t pad) : ops_(ops), pad_(pad) {}

  Ops& ops() { return ops_; }
  // Of an array without dimensions: an absent tensor.
  Tensor make(const Array& x, DType dtype);
  // What a tensor made here holds, when the ops are done.
  Array read(const Tensor& x);
  // Waits for the ops; fails where memory between the elements of a padded tensor was written.
  void expect_padding_untouched();

 private:
  static constexpr double kPadding = -77.0;

  struct Storage {
    Buffer buffer;  // on the ops' device
    Tensor whole, view;
  };
  const Storage& storage_of(const Tensor& x) const;
  Buffer to_host(const Storage& s) const;

  Ops& ops_;
  int64_t pad_;
  std::deque<Storage> storage_;
};

// Hands arrays to an op as tensors of one activation type. Tensors to be written over start as NaN.
class Runner : public PaddedTensors {
 public:
  Runner(Ops& ops, DType dtype, int64_t pad = 0) : PaddedTensors(ops, pad), dtype_(dtype) {}

  DType dtype() const { return dtype_; }
  DType acc() const { return accumulate_type(dtype_); }

  // Inputs; an array without dimensions makes an absent tensor. `ints` makes int32.
  Tensor in(const Array& x) { return make(x, dtype_); }
  Tensor in_acc(const Array& x) { return make(x, acc()); }
  Tensor ints(const Array& x) { return make(x, DType::i32); }
  // Outputs.
  Tensor out(const std::vector<int64_t>& sizes) { return make(Array(sizes, kUnwritten), dtype_); }
  Tensor out_acc(const std::vector<int64_t>& sizes) { return make(Array(sizes, kUnwritten), acc()); }
  // Outputs that are added to: they start at kStart, which get_added takes off again.
  Tensor added(const std::vector<int64_t>& sizes) { return make(Array(sizes, kStart), dtype_); }
  Tensor added_acc(const std::vector<int64_t>& sizes) { return make(Array(sizes, kStart), acc()); }

  Array get(const Tensor& x) { return read(x); }
  Array get_added(const Tensor& x);

 private:
  static constexpr double kUnwritten = std::numeric_limits<double>::quiet_NaN();
  static constexpr double kStart = 0.25;

  DType dtype_;
};

// One op with its inputs. run() returns its outputs by name and, for input x, the gradient "dx" of
//   L = sum over outputs y of <in["grad_y"], y>.
class OpCase {
 public:
  virtual ~OpCase() = default;
  virtual Arrays run(Runner& runner) const = 0;
  // Plain loops in float64, from the formulas of ops.h: the outputs by name.
  virtual Arrays reference() const = 0;

  Arrays in;
  std::string name;
  uint64_t seed = 0;
};

// The ops under test.
Ops& test_ops();

Arrays run(const OpCase& c, DType dtype, int64_t pad = 0);

// Float64 outputs agree with reference() to `tolerance`.
void check_reference(const OpCase& c, double tolerance = 1e-12);
// Float64 gradients agree with finite differences of L along random directions. 4-point central differences with step
// h have an error of h^4 and eps / h, 1e-11 or so; the tolerance is 1e-8 of the gradient's own size.
void check_gradients(OpCase& c, double tolerance = 1e-8);
// Float32 agrees with float64 to `units` float32 rounding units (of each array's norm); padded tensors give the same
// bits as contiguous ones and leave the padding alone; 1, 2 and 3 threads give the same bits.
void check_variants(const OpCase& c, double units);

void expect_same_bits(const Arrays& a, const Arrays& b, const std::string& what);

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double silu(double x) { return x * sigmoid(x); }

}  // namespace tmamba::test
