// The scan of states over segments, and the decay of a state over tokens that add nothing to it.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 256;

template <class T>
struct Decay {
  Cubes<T> state;         // [B, H, K, D]
  Planes<const T> log_a;  // [B, T, H]
  int64_t H, K, D, tokens;
};

// One block per sequence and head.
template <class T>
__global__ void __launch_bounds__(kThreads) decay_kernel(Decay<T> f) {
  __shared__ T scratch[kThreads / kWarp];
  const DivMod at(blockIdx.x, f.H);
  T sum = 0;
  for (int64_t t = threadIdx.x; t < f.tokens; t += kThreads) sum += f.log_a.at(at.quotient, t)[at.remainder];
  const T factor = exp(block_sum<kThreads>(sum, scratch));
  for (int64_t i = threadIdx.x; i < f.K * f.D; i += kThreads) {
    const DivMod element(i, f.D);
    f.state.at(at.quotient, at.remainder, element.quotient)[element.remainder] *= factor;
  }
}

template <class T>
struct Scan {
  Cubes<T> out;             // [K, B, H, E]
  Cubes<const T> in;        // [K, B, H, E]
  Planes<const T> decay;    // [K, B, H]
  int64_t K, H, E, blocks;  // blocks of one head
  bool reverse;
};

// Each thread scans one element over the segments.
template <class T>
__global__ void __launch_bounds__(kThreads) scan_kernel(Scan<T> f) {
  const DivMod at(blockIdx.x, f.blocks), head(at.quotient, f.H);
  const int64_t b = head.quotient, h = head.remainder, e = at.remainder * kThreads + threadIdx.x;
  if (e >= f.E) return;
  T state = 0;
  for (int64_t step = 0; step < f.K; ++step) {
    const int64_t k = f.reverse ? f.K - 1 - step : step;
    f.out.at(k, b, h)[e] = state;
    state = exp(f.decay.at(k, b)[h]) * state + f.in.at(k, b, h)[e];
  }
}

}  // namespace

void CudaOps::ssd_decay(const SsdDecay& args) {
  const int64_t B = args.state_BHKD.size(0), H = args.state_BHKD.size(1), K = args.state_BHKD.size(2),
                D = args.state_BHKD.size(3);
  const int64_t T = args.log_a_BTH.size(1);
  check_args(Device::cuda, args);
  if (K * D * T == 0) return;
  dispatch_float(args.state_BHKD.dtype(), [&]<class A>() {
    const Decay<A> f{cubes<A>(args.state_BHKD), planes<A>(args.log_a_BTH), H, K, D, T};
    launch(stream(), {B * H}, kThreads, 0, decay_kernel<A>, f);
  });
}

void CudaOps::segment_scan(const SegmentScan& args) {
  const int64_t K = args.out_KBHE.size(0), B = args.out_KBHE.size(1), H = args.out_KBHE.size(2),
                E = args.out_KBHE.size(3);
  check_args(Device::cuda, args);
  const int64_t blocks = ceil_div(E, kThreads);
  dispatch_float(args.out_KBHE.dtype(), [&]<class A>() {
    const Scan<A> f{
        cubes<A>(args.out_KBHE), cubes<A>(args.in_KBHE), planes<A>(args.decay_KBH), K, H, E, blocks, args.reverse};
    launch(stream(), {B * H * blocks}, kThreads, 0, scan_kernel<A>, f);
  });
}

}  // namespace tmamba::cuda
