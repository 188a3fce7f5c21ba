// What the arguments of an op are made of. An op is declared once (args_*.h), as a struct of its tensors and scalars:
//   kName                      its name in messages, profiles and benchmarks
//   kSplit                     how its work may be cut into calls
//   for_each_tensor(args, f)   calls f(tensor, TensorSpec) for every tensor
//   counts()                   its floating-point operations
//   check_rest()               if it has one: throws Error for what no TensorSpec covers
// and is added to the list at the end of its header. Checks, counts, timings and the canonical mode derive from these.
//
// Optional tensors have the initializer {}.
#pragma once

#include <array>
#include <initializer_list>

#include "kernels/base/tensor.h"

namespace tmamba {

// Floating-point operations (a multiply-add is two), causal attention counted exactly.
struct OpCounts {
  double linear = 0;       // GEMMs with weights
  double attention = 0;    // scores and values over the prefix
  double ssd = 0;          // scan, converter and their chunk products
  double elementwise = 0;  // everything else, a few per element

  double matmul() const { return linear + attention + ssd; }
  double total() const { return matmul() + elementwise; }
  OpCounts& operator+=(const OpCounts& other) {
    linear += other.linear, attention += other.attention, ssd += other.ssd, elementwise += other.elementwise;
    return *this;
  }
};

inline double elements(const ConstTensor& x) { return static_cast<double>(x.numel()); }

// The calls that together do the work of one: on some rows (N) of its tensors, on some tokens of one sequence (B, T) or
// on one sequence (B). The first letter of a shape suffix names the dimension that is cut. `none`: one call.
enum class Split : uint8_t { none, rows, tokens, sequences };

// The sizes that a tensor must have.
class TensorSizes {
 public:
  TensorSizes(std::initializer_list<int64_t> sizes) {  // NOLINT(google-explicit-constructor): a list of sizes
    for (int64_t size : sizes) size_[static_cast<size_t>(dims_++)] = size;
  }
  // Those of `x`.
  template <class Void>
  TensorSizes(const TensorView<Void>& x) : dims_(x.dims()) {  // NOLINT(google-explicit-constructor)
    for (int i = 0; i < dims_; ++i) size_[static_cast<size_t>(i)] = x.size(i);
  }
  bool match(const ConstTensor& x) const;
  // "[2, 64, 48]", for messages.
  std::string text() const;

 private:
  int dims_ = 0;
  std::array<int64_t, ConstTensor::kMaxDims> size_{};
};

// Flags of a TensorSpec.
inline constexpr unsigned kOptional = 1;    // may be absent (empty)
inline constexpr unsigned kTokenSum = 2;    // a sum over tokens is added to it, such as the gradient of a parameter
inline constexpr unsigned kAnyStrides = 4;  // the last dimension need not be contiguous
inline constexpr unsigned kUncounted = 8;   // left out of tensor_bytes

// What a tensor must be, unless it is absent. The name is that of the field.
struct TensorSpec {
  const char* name;
  DType dtype;
  TensorSizes sizes;
  unsigned flags = 0;
};

// Throws Error naming op and tensor unless `x` is on `device` and as specified.
void check_tensor(Device device, const char* op, const ConstTensor& x, const TensorSpec& spec);

// Throws Error unless an op can run on `device` with these arguments. What only one device cannot do is checked by that
// device's ops.
template <class Args>
void check_args(Device device, const Args& args) {
  Args::for_each_tensor(
      args, [&](const ConstTensor& x, const TensorSpec& spec) { check_tensor(device, Args::kName, x, spec); });
  if constexpr (requires { args.check_rest(); }) args.check_rest();
}

// Bytes of the tensors of a call, each counted once.
template <class Args>
double tensor_bytes(const Args& args) {
  int64_t bytes = 0;
  Args::for_each_tensor(args, [&](const ConstTensor& x, const TensorSpec& spec) {
    if ((spec.flags & kUncounted) == 0) bytes += x.bytes();
  });
  return static_cast<double>(bytes);
}

}  // namespace tmamba
