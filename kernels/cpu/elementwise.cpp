// fill, copy, add, scale and sum_squares of tensors with any strides.
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"

namespace tmamba {

namespace {

constexpr int64_t kBlock = 16384;

// One or two tensors of the same sizes as equally long runs of consecutive elements: trailing dimensions that are
// contiguous in both become one run, loops run over the others.
class Runs {
 public:
  explicit Runs(const ConstTensor& x) : Runs(x, x) {}
  Runs(const ConstTensor& y, const ConstTensor& x) {
    int64_t expected = 1;
    int dim = y.dims() - 1;
    for (; dim >= 0; --dim) {
      if (y.size(dim) != 1 && (y.stride(dim) != expected || x.stride(dim) != expected)) break;
      expected *= y.size(dim);
    }
    length_ = expected;
    for (int i = 0; i <= dim; ++i) {
      count_ *= y.size(i);
      dims_.push_back({y.size(i), y.stride(i), x.stride(i)});
    }
    if (y.numel() == 0) count_ = 0;
  }

  // Calls f(y_offset, x_offset, length) for parts of the runs, on any threads.
  template <class F>
  void for_each(const F& f) const {
    if (length_ >= kBlock) {
      const int64_t blocks = ceil_div(length_, kBlock);
      parallel_tasks(count_ * blocks, [&](int64_t task) {
        const int64_t begin = task % blocks * kBlock;
        const auto [y, x] = offsets(task / blocks);
        f(y + begin, x + begin, std::min(kBlock, length_ - begin));
      });
    } else {
      parallel_blocks(count_, rows_per_block(length_), [&](int64_t begin, int64_t end) {
        for (int64_t run = begin; run < end; ++run) {
          const auto [y, x] = offsets(run);
          f(y, x, length_);
        }
      });
    }
  }

 private:
  struct Dim {
    int64_t size, y_stride, x_stride;
  };
  struct Offsets {
    int64_t y = 0, x = 0;
  };

  Offsets offsets(int64_t run) const {
    Offsets out;
    for (size_t i = dims_.size(); i-- > 0;) {
      const int64_t index = run % dims_[i].size;
      run /= dims_[i].size;
      out.y += index * dims_[i].y_stride;
      out.x += index * dims_[i].x_stride;
    }
    return out;
  }

  int64_t length_ = 1;
  int64_t count_ = 1;
  std::vector<Dim> dims_;
};

// Calls f.template operator()<T>() with T = float, double or bf16_t.
template <class F>
void dispatch_storage(DType dtype, const F& f) {
  if (dtype == DType::bf16) return f.template operator()<bf16_t>();
  dispatch_float(dtype, f);
}

float widen(float x) { return x; }
double widen(double x) { return x; }
float widen(bf16_t x) { return to_float(x); }

template <class To, class From>
To narrow(From x) {
  if constexpr (std::is_same_v<To, bf16_t>) {
    return to_bf16(static_cast<float>(x));
  } else {
    return static_cast<To>(x);
  }
}

template <class T>
double sum_of_squares(const T* x, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(widen(x[i])) * static_cast<double>(widen(x[i]));
  return sum;
}

// y = f(y, x) elementwise, computed in the wider of the two types.
template <class F>
void update(const Tensor& y, const ConstTensor& x, const F& f) {
  const Runs runs(y, x);
  dispatch_storage(y.dtype(), [&]<class Y>() {
    dispatch_storage(x.dtype(), [&]<class X>() {
      Y* y_data = y.data<Y>();
      const X* x_data = x.data<X>();
      runs.for_each([&](int64_t y_offset, int64_t x_offset, int64_t length) {
        Y* to = y_data + y_offset;
        const X* from = x_data + x_offset;
        for (int64_t i = 0; i < length; ++i) to[i] = narrow<Y>(f(widen(to[i]), widen(from[i])));
      });
    });
  });
}

}  // namespace

void CpuOps::fill(const Fill& args) {
  check_args(Device::cpu, args);
  dispatch_storage(args.x.dtype(), [&]<class T>() {
    T* data = args.x.data<T>();
    const T filler = narrow<T>(args.value);
    Runs(args.x).for_each([&](int64_t offset, int64_t, int64_t length) { std::fill_n(data + offset, length, filler); });
  });
}

void CpuOps::copy(const Copy& args) {
  check_args(Device::cpu, args);
  update(args.y, args.x, [](auto, auto value) { return value; });
}

void CpuOps::add(const Add& args) {
  check_args(Device::cpu, args);
  update(args.y, args.x, [](auto sum, auto value) { return sum + value; });
}

void CpuOps::scale(const Scale& args) {
  check_args(Device::cpu, args);
  dispatch_storage(args.x.dtype(), [&]<class T>() {
    T* data = args.x.data<T>();
    using Wide = decltype(widen(T{}));
    const Wide by = static_cast<Wide>(args.factor);
    Runs(args.x).for_each([&](int64_t offset, int64_t, int64_t length) {
      T* piece = data + offset;
      for (int64_t i = 0; i < length; ++i) piece[i] = narrow<T>(widen(piece[i]) * by);
    });
  });
}

void CpuOps::sum_squares(const SumSquares& args) {
  check_args(Device::cpu, args);
  double total = 0;
  for (const ConstTensor& x : args.tensors) {
    std::vector<double> partial(static_cast<size_t>(ceil_div(x.numel(), kBlock)));
    dispatch_storage(x.dtype(), [&]<class T>() {
      const T* data = x.data<T>();
      parallel_blocks(x.numel(), kBlock, [&](int64_t begin, int64_t end) {
        partial[static_cast<size_t>(begin / kBlock)] = sum_of_squares(data + begin, end - begin);
      });
    });
    for (double sum : partial) total += sum;
  }
  *args.out_1.data<double>() = total;
}

}  // namespace tmamba
