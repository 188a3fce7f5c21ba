// Ops on the elements of tensors with any strides.
#pragma once

#include <span>

#include "kernels/ops/op_args.h"

namespace tmamba {

// x = value
struct Fill {
  static constexpr const char* kName = "fill";
  static constexpr Split kSplit = Split::none;
  Tensor x;
  double value;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    f(a.x, {"x", a.x.dtype(), a.x, kAnyStrides});
  }
  OpCounts counts() const { return {}; }
};

// y = x, of any two floating types
struct Copy {
  static constexpr const char* kName = "copy";
  static constexpr Split kSplit = Split::none;
  Tensor y;
  ConstTensor x;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    f(a.y, {"y", a.y.dtype(), a.x, kAnyStrides});
    f(a.x, {"x", a.x.dtype(), a.x, kAnyStrides});
  }
  OpCounts counts() const { return {}; }
};

// y += x, of any two floating types
struct Add {
  static constexpr const char* kName = "add";
  static constexpr Split kSplit = Split::none;
  Tensor y;
  ConstTensor x;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    f(a.y, {"y", a.y.dtype(), a.x, kAnyStrides});
    f(a.x, {"x", a.x.dtype(), a.x, kAnyStrides});
  }
  OpCounts counts() const { return {.elementwise = elements(y)}; }
};

// x *= factor
struct Scale {
  static constexpr const char* kName = "scale";
  static constexpr Split kSplit = Split::none;
  Tensor x;
  double factor;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    f(a.x, {"x", a.x.dtype(), a.x, kAnyStrides});
  }
  OpCounts counts() const { return {.elementwise = elements(x)}; }
};

// out_1 [float64] = sum x^2 over contiguous floating-point tensors, in order. Accumulated in float64.
struct SumSquares {
  static constexpr const char* kName = "sum_squares";
  static constexpr Split kSplit = Split::none;
  Tensor out_1;
  std::span<const ConstTensor> tensors;

  template <class Args, class F>
  static void for_each_tensor(Args& a, const F& f) {
    f(a.out_1, {"out_1", DType::f64, {1}, kUncounted});
    for (const ConstTensor& x : a.tensors) f(x, {"tensors", x.dtype(), x});
  }
  void check_rest() const {
    for (const ConstTensor& x : tensors) {
      const bool floating = x.dtype() == DType::bf16 || x.dtype() == DType::f32 || x.dtype() == DType::f64;
      TM_CHECK(x.contiguous() && floating, "sum_squares: ", x.shape(), " ", name_of(x.dtype()),
               " must be contiguous and floating-point");
    }
  }
  OpCounts counts() const {
    OpCounts out;
    for (const ConstTensor& x : tensors) out.elementwise += 2 * elements(x);
    return out;
  }
};

#define TMAMBA_ELEMENTWISE_OPS(X) X(fill, Fill) X(copy, Copy) X(add, Add) X(scale, Scale) X(sum_squares, SumSquares)

}  // namespace tmamba
