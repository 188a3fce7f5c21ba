// The attention ops: selection of kernels, and do . o.
#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/common/hopper.h"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 256;

// One warp per query and head; neighbouring warps have neighbouring heads.
template <class A>
__global__ void __launch_bounds__(kThreads) delta_kernel(AttentionBackwardViews<A> f) {
  const AttentionSizes& s = f.size;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (i >= s.B * s.T * s.H) return;
  const DivMod head(i, s.H), token(head.quotient, s.T);
  const int64_t b = token.quotient, t = token.remainder, h = head.remainder;
  const A *d_o = f.d_o.at(b, t, h), *o = f.o.at(b, t, h);
  Acc<A> sum = 0;
  for (int64_t c = threadIdx.x % kWarp * 2; c < s.D; c += 2 * kWarp) {
    sum += widen(d_o[c]) * widen(o[c]) + widen(d_o[c + 1]) * widen(o[c + 1]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) f.delta_BHT[(b * s.H + h) * s.T + t] = sum;
}

void check_width(int64_t D) {
  TM_CHECK(D % 2 == 0 && D <= 256, "attention: head width ", D, "; CUDA supports even widths up to 256");
}

// The Hopper kernels take the maximum of unscaled scores, so the scale must be positive.
bool takes_wgmma(const AttentionSizes& s) { return s.scale > 0 && runs_wgmma(); }

}  // namespace

void CudaOps::attention_forward(const AttentionForward& args) {
  const int64_t B = args.q_BTHD.size(0), T = args.q_BTHD.size(1), H = args.q_BTHD.size(2), D = args.q_BTHD.size(3);
  const DType dtype = args.q_BTHD.dtype();
  check_args(Device::cuda, args);
  check_width(D);
  const AttentionSizes size{
      B, T, H, D, args.q_begin, args.scale, rows_aligned16({args.o_BTHD, args.q_BTHD, args.k_BSHD, args.v_BSHD})};
  if (B * T * H * D == 0) return;
  dispatch_activation(dtype, [&]<class A>() {
    const AttentionForwardViews<A> f{size,
                                     cubes<A>(args.o_BTHD),
                                     planes<Acc<A>>(args.lse_BTH),
                                     cubes<A>(args.q_BTHD),
                                     cubes<A>(args.k_BSHD),
                                     cubes<A>(args.v_BSHD)};
    if constexpr (std::is_same_v<A, bf16_t>) {
      if (has_attention_tiles(dtype, D)) {
        return takes_wgmma(size) ? attention_forward_wgmma(stream(), f) : attention_forward_tiles(stream(), f);
      }
    }
    attention_forward_plain(stream(), f);
  });
}

void CudaOps::attention_backward(const AttentionBackward& args) {
  const int64_t B = args.q_BTHD.size(0), T = args.q_BTHD.size(1), H = args.q_BTHD.size(2), D = args.q_BTHD.size(3);
  const DType dtype = args.q_BTHD.dtype();
  check_args(Device::cuda, args);
  check_width(D);
  const AttentionSizes size{B,
                            T,
                            H,
                            D,
                            args.q_begin,
                            args.scale,
                            rows_aligned16({args.dq_BTHD, args.dk_BSHD, args.dv_BSHD, args.do_BTHD, args.o_BTHD,
                                            args.q_BTHD, args.k_BSHD, args.v_BSHD})};
  if (B * T * H * D == 0) return;
  dispatch_activation(dtype, [&]<class A>() {
    const bool tiles = has_attention_tiles(dtype, D), wgmma = tiles && takes_wgmma(size);
    AttentionBackwardViews<A> f{size,
                                cubes<A>(args.dq_BTHD),
                                cubes<A>(args.dk_BSHD),
                                cubes<A>(args.dv_BSHD),
                                cubes<A>(args.do_BTHD),
                                cubes<A>(args.o_BTHD),
                                cubes<A>(args.q_BTHD),
                                cubes<A>(args.k_BSHD),
                                cubes<A>(args.v_BSHD),
                                planes<Acc<A>>(args.lse_BTH),
                                nullptr};
    if constexpr (std::is_same_v<A, bf16_t>) {
      if (wgmma) {
        return attention_backward_wgmma(stream(), f, workspace_.take<float>(attention_backward_terms(size)));
      }
    }
    f.delta_BHT = workspace_.take<Acc<A>>(B * H * T);
    launch(stream(), {ceil_div(B * T * H, kThreads / kWarp)}, kThreads, 0, delta_kernel<A>, f);
    if constexpr (std::is_same_v<A, bf16_t>) {
      if (tiles) return attention_backward_tiles(stream(), f);
    }
    attention_backward_plain(stream(), f);
  });
}

}  // namespace tmamba::cuda
