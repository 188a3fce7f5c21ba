// Rotary position embedding. A thread computes the angles of kVec neighbouring pairs of one token in float64 and
// rotates these pairs in several heads.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kHeads = 4;  // of a token that a thread loads at a time

template <class A>
struct Rope {
  Cubes<A> y;
  Cubes<const A> x;
  int64_t B, T, H, pairs, heads_per_thread, position;
  double log_theta;
  double direction;
  bool aligned16;
};

template <class A>
__global__ void __launch_bounds__(kThreads) rope_kernel(Rope<A> f) {
  constexpr int V = kVec<A>;
  const int64_t steps = (f.pairs + V - 1) / V;
  const DivMod at(static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, steps);
  const int64_t t = at.quotient, i = at.remainder * V, left = f.pairs - i;
  if (t >= f.T) return;
  Acc<A> cosine[V], sine[V];
#pragma unroll
  for (int e = 0; e < V; ++e) {
    double s, c;
    sincos(static_cast<double>(f.position + t) *
               exp(-static_cast<double>(i + e) / static_cast<double>(f.pairs) * f.log_theta),
           &s, &c);
    cosine[e] = static_cast<Acc<A>>(c), sine[e] = static_cast<Acc<A>>(s * f.direction);
  }
  const int64_t b = blockIdx.z, begin = blockIdx.y * f.heads_per_thread;
  const int64_t end = begin + f.heads_per_thread < f.H ? begin + f.heads_per_thread : f.H;
  for (int64_t first_head = begin; first_head < end; first_head += kHeads) {
    Raw<A> low[kHeads], high[kHeads];
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      const int64_t h = first_head + j, here = h < end ? left : 0;
      low[j] = load(f.x.at(b, t, h) + i, here, f.aligned16);
      high[j] = load(f.x.at(b, t, h) + i + f.pairs, here, f.aligned16);
    }
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      const int64_t h = first_head + j, here = h < end ? left : 0;
      Raw<A> low_out, high_out;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        low_out.v[e] = narrow<A>(low[j][e] * cosine[e] - high[j][e] * sine[e]);
        high_out.v[e] = narrow<A>(high[j][e] * cosine[e] + low[j][e] * sine[e]);
      }
      store(f.y.at(b, t, h) + i, low_out, here, f.aligned16);
      store(f.y.at(b, t, h) + i + f.pairs, high_out, here, f.aligned16);
    }
  }
}

void rope(cudaStream_t stream, const Tensor& y_BTHD, const ConstTensor& x_BTHD, int64_t position, double theta,
          int direction) {
  const int64_t B = x_BTHD.size(0), T = x_BTHD.size(1), H = x_BTHD.size(2), D = x_BTHD.size(3);
  if (B * T * H * D == 0) return;
  dispatch_activation(x_BTHD.dtype(), [&]<class A>() {
    const int64_t pairs = D / 2;
    const bool aligned16 = rows_aligned16({y_BTHD, x_BTHD}) && pairs % kVec<A> == 0;
    const Rope<A> f{cubes<A>(y_BTHD),
                    cubes<A>(x_BTHD),
                    B,
                    T,
                    H,
                    pairs,
                    std::min<int64_t>(H, 16),
                    position,
                    std::log(theta),
                    static_cast<double>(direction),
                    aligned16};
    const Grid grid{ceil_div(T * ceil_div(pairs, kVec<A>), kThreads), ceil_div(H, f.heads_per_thread), B};
    launch(stream, grid, kThreads, 0, rope_kernel<A>, f);
  });
}

}  // namespace

void CudaOps::rope_forward(const RopeForward& args) {
  check_args(Device::cuda, args);
  rope(stream(), args.y_BTHD, args.x_BTHD, args.position, args.theta, 1);
}

void CudaOps::rope_backward(const RopeBackward& args) {
  check_args(Device::cuda, args);
  rope(stream(), args.dx_BTHD, args.dy_BTHD, args.position, args.theta, -1);
}

}  // namespace tmamba::cuda
