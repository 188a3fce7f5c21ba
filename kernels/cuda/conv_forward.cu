#include "kernels/cuda/conv.cuh"
#include "kernels/cuda/conv.h"
#include "kernels/op_checks.h"

namespace tmamba::cuda {

namespace {

constexpr int64_t kBlocks = 2304, kTurningBlocks = 1848;

template <class A, int kTaps, bool kRope>
struct Forward {
  const Conv<A>& conv;
  const Rotation<A>& rotation;
  const Place<A> place;
  Tiles<A> x;
  Window<A, kTaps> window;
  Angles<A> angles;
  A *to, *to_rotated;  // of the next token; to_rotated only where this thread's channels are keys and lie apart
  int64_t y_stride;
  bool both;

  // The tokens [row, row + kTile) of the strip. kInterior: all are there, with both channels, and where they turn all
  // are of the prefix.
  template <bool kInterior, Turn kTurn>
  __device__ void compute(int stage, int row) {
#pragma unroll(kInterior ? kUnrolled : 1)
    for (int i = 0; i < kTile; ++i) {
      if (!kInterior && row + i >= place.count) break;
      window.advance(x.at(stage, i));
      Pair<A> out;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const Acc<A> pre = window.pre_activation(e);
        out.v[e] = pre * sigmoid<A>(pre);
      }
      StoredPair<A> y = rounded<A>(out);
      if constexpr (kTurn != Turn::none) {
        const StoredPair<A> turned = rounded<A>(angles.turned(y.widened(), y.partner().widened()));
        angles.advance();
        const bool here = kInterior || row + i < place.turned;
        const bool key = kTurn == Turn::apart && to_rotated != nullptr;
        if (kTurn == Turn::apart) {
          if (key && here) store_pair(to_rotated, turned, kWidth, rotation.wide);
          to_rotated += key ? rotation.k_rot.t : 0;
        }
        if (!key && here) y = turned;
      }
      store_pair(to, y, place.left, kInterior || both);
      to += y_stride;
    }
  }

  template <Turn kTurn>
  __device__ void compute(int stage, int row, bool interior) {
    if (interior) {
      compute<true, kTurn>(stage, row);
    } else {
      compute<false, kTurn>(stage, row);
    }
  }
};

template <class A, int kTaps, bool kRope>
__global__ void __launch_bounds__(kConvThreads)
    forward_kernel(const __grid_constant__ Conv<A> conv, const __grid_constant__ Rotation<A> rotation,
                   const __grid_constant__ Planes<A> y) {
  extern __shared__ uint4 shared[];
  const Place<A> place(conv, rotation);
  const int64_t piece = place.channel(conv, rotation, Tiles<A>::column());
  const bool both = conv.wide && place.left >= kWidth;
  const bool apart = kRope && place.keys_apart(rotation);
  A* const to_rotated = apart ? place.rotated_key(rotation, place.c, 0) : nullptr;
  Forward<A, kTaps, kRope> f{conv,
                             rotation,
                             place,
                             {shared, 0, conv.x.at(place.b, place.begin + Tiles<A>::row()) + piece},
                             {},
                             {},
                             y.at(place.b, place.begin) + place.c,
                             to_rotated,
                             y.t,
                             both};
  for_each_tile(
      place.count,
      [&](int stage, int row) { f.x.start(stage, place.count - row, conv.x.t, conv.C - piece, conv.wide); },
      [&] {
        f.window.begin(conv, place);
        if (kRope && place.turned > 0) f.angles.begin(rotation, place, 1);
      },
      [&](int stage, int row) {
        const bool interior = both && row + kTile <= place.count;
        if constexpr (kRope) {
          if (row < place.turned) {
            const bool all = interior && row + kTile <= place.turned;
            return apart ? f.template compute<Turn::apart>(stage, row, all)
                         : f.template compute<Turn::in_place>(stage, row, all);
          }
        }
        f.template compute<Turn::none>(stage, row, interior);
      });
}

}  // namespace

void conv_forward(cudaStream_t stream, const ConvRopeForward& args) {
  const ConstTensor& x_BTC = args.x_BTC;
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2);
  if (B * T * C == 0) return;
  check_conv_silu_forward(Device::cuda, args.y_BTC, x_BTC, args.halo_BWC, args.w_CW, args.b_C);
  const bool wide = wide_rows({args.y_BTC, x_BTC, args.halo_BWC});
  dispatch_activation(x_BTC.dtype(), [&]<class A>() {
    const Conv<A> conv =
        make_conv<A>(x_BTC, args.halo_BWC, args.w_CW, args.b_C, wide, args.prefix > 0 ? kTurningBlocks : kBlocks);
    const Rotation<A> rotation = make_rotation<A>(args, args.k_rot_BPHD);
    dispatch_taps(conv.W, [&]<int kTaps>() {
      const auto kernel = args.prefix > 0 ? forward_kernel<A, kTaps, true> : forward_kernel<A, kTaps, false>;
      launch(stream, grid_of(conv), kConvThreads, Tiles<A>::kBytes, kernel, conv, rotation, planes<A>(args.y_BTC));
    });
  });
}

}  // namespace tmamba::cuda
