#include <cmath>

#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

namespace tmamba {

void RopeTable::prepare(int64_t positions, int64_t pairs, double theta) {
  if (theta != theta_ || pairs != pairs_) {
    theta_ = theta, pairs_ = pairs;
    fine_.clear(), coarse_.clear(), frequency_.clear();
    for (int64_t i = 0; i < pairs; ++i) {
      frequency_.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(pairs)));
    }
  }
  const auto append = [&](std::vector<double>& table, int64_t count, int64_t step) {
    const auto width = static_cast<size_t>(2 * pairs);
    for (auto row = static_cast<int64_t>(pairs == 0 ? count : table.size() / width); row < count; ++row) {
      for (double f : frequency_) table.push_back(std::cos(static_cast<double>(row * step) * f));
      for (double f : frequency_) table.push_back(std::sin(static_cast<double>(row * step) * f));
    }
  };
  append(fine_, kFine, 1);
  append(coarse_, ceil_div(positions, kFine), kFine);
}

template <class T>
void RopeTable::angles(T* cos_sin, int64_t position) const {
  const double* coarse = coarse_.data() + position / kFine * 2 * pairs_;
  const double* fine = fine_.data() + position % kFine * 2 * pairs_;
#pragma omp simd
  for (int64_t i = 0; i < pairs_; ++i) {
    const double c1 = coarse[i], s1 = coarse[pairs_ + i], c2 = fine[i], s2 = fine[pairs_ + i];
    cos_sin[i] = static_cast<T>(c1 * c2 - s1 * s2);
    cos_sin[pairs_ + i] = static_cast<T>(s1 * c2 + c1 * s2);
  }
}

namespace {

// Rotates each pair (i, i + D/2) of every token by +angle or -angle.
template <class A>
void rotate(const Tensor& y_BTHD, const ConstTensor& x_BTHD, const RopeTable& table, int64_t position, A direction) {
  const int64_t B = x_BTHD.size(0), T = x_BTHD.size(1), H = x_BTHD.size(2), pairs = x_BTHD.size(3) / 2;
  const auto y = cubes<A>(y_BTHD);
  const auto x = cubes<A>(x_BTHD);
  parallel_blocks(T, rows_per_block(B * H * pairs * 2), [&](int64_t begin, int64_t end) {
    ScratchFrame frame;
    A* cosine = frame.take<A>(2 * pairs);
    A* sine = cosine + pairs;
    for (int64_t t = begin; t < end; ++t) {
      table.angles(cosine, position + t);
      for (int64_t b = 0; b < B; ++b) {
        for (int64_t h = 0; h < H; ++h) {
          const A* from = x.at(b, t, h);
          A* to = y.at(b, t, h);
#pragma omp simd
          for (int64_t i = 0; i < pairs; ++i) {
            const A first = from[i], second = from[pairs + i], s = sine[i] * direction;
            to[i] = first * cosine[i] - second * s;
            to[pairs + i] = second * cosine[i] + first * s;
          }
        }
      }
    }
  });
}

void rope(RopeTable& table, const Tensor& y_BTHD, const ConstTensor& x_BTHD, int64_t position, double theta,
          int direction) {
  const int64_t B = x_BTHD.size(0), T = x_BTHD.size(1), H = x_BTHD.size(2), D = x_BTHD.size(3);
  if (B * T * H * D == 0) return;
  table.prepare(position + T, D / 2, theta);
  dispatch_float(x_BTHD.dtype(),
                 [&]<class A>() { rotate<A>(y_BTHD, x_BTHD, table, position, static_cast<A>(direction)); });
}

}  // namespace

void CpuOps::rope_forward(const RopeForward& args) {
  check_args(Device::cpu, args);
  rope(rope_table_, args.y_BTHD, args.x_BTHD, args.position, args.theta, 1);
}

void CpuOps::rope_backward(const RopeBackward& args) {
  check_args(Device::cpu, args);
  rope(rope_table_, args.dx_BTHD, args.dy_BTHD, args.position, args.theta, -1);
}

}  // namespace tmamba
