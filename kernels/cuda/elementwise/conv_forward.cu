#include "kernels/cuda/elementwise/conv.h"
#include "kernels/cuda/elementwise/conv_window.cuh"

namespace tmamba::cuda {

namespace {

// Resident warps per SM: few, so that each has registers to overlap the instructions of several tokens.
template <bool kRope>
constexpr int kWarps = kRope ? 16 : 20;

template <class A, int kTaps, int kThreads, bool kRope>
struct Forward {
  const Rotation<A>& rotation;
  const Place<A, kRope> place;
  Tiles<A, kThreads, kRope> x;
  Window<A, kTaps, kRope> window;
  Angles<A> angles;
  A* to_rotated;  // for the next token, if rotated keys are stored separately

  // Computes token i of a tile in place.
  __device__ void token(int stage, int i, RopeMode mode) {
    window.advance(x.at(stage, i));
    Group<A> out;
#pragma unroll
    for (int e = 0; e < kWidth<A>; ++e) {
      const Acc<A> pre = window.pre_activation(e);
      out.v[e] = pre * sigmoid<A>(pre);
    }
    StoredGroup<A> y = StoredGroup<A>::rounded(out);
    if (mode != RopeMode::none) {
      const StoredGroup<A> rotated = StoredGroup<A>::rounded(angles.rotated(y.widened()));
      angles.advance();
      if (mode == RopeMode::separate) {
        store_group(to_rotated, place.upper, rotated, kWidth<A> + place.upper, rotation.aligned16);
        to_rotated += rotation.k_rot.t;
      } else {
        y = rotated;
      }
    }
    x.put(stage, i, y);
  }

  template <RopeMode kMode>
  __device__ void whole_tile(int stage) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) token(stage, i, kMode);
  }

  // Computes tokens [row, row + kTile) of the strip.
  __device__ void tile(int stage, int row) {
    if (!place.here) return;
    const bool whole = row + kTile <= place.count;
    if (whole && row >= place.rotated) return whole_tile<RopeMode::none>(stage);
    if constexpr (kRope) {
      if (whole && row + kTile <= place.rotated) {
        return place.mode == RopeMode::separate ? whole_tile<RopeMode::separate>(stage)
                                                : whole_tile<RopeMode::in_place>(stage);
      }
    }
#pragma unroll 1
    for (int i = 0; i < kTile && row + i < place.count; ++i) {
      token(stage, i, kRope && row + i < place.rotated ? place.mode : RopeMode::none);
    }
  }
};

template <class A, int kTaps, int kThreads, bool kRope>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 2 && kTaps == 4 ? kWarps<kRope> * kWarp / kThreads : 1)
    forward_kernel(const __grid_constant__ Conv<A> conv, const __grid_constant__ Rotation<A> rotation,
                   const __grid_constant__ Planes<A> y) {
  extern __shared__ uint4 shared[];
  using X = Tiles<A, kThreads, kRope>;
  const Place<A, kRope> place(conv, rotation);
  const int64_t vector = place.first + X::column(), left = X::left(conv, place);
  A* to = y.at(place.b, place.begin + X::row()) + vector;
  Forward<A, kTaps, kThreads, kRope> f{
      rotation, place, {shared, 0, place, conv.x.at(place.b, place.begin + X::row()) + vector}, {}, {}, nullptr};
  for_each_tile(
      place.count, [&](int stage, int row) { f.x.start(stage, place.count - row, conv.x.t, left, conv.aligned16); },
      [&] {
        f.window.begin(conv, place);
        if (!kRope || place.rotated == 0) return;
        f.angles.begin(rotation, place.c, place.begin, 1);
        if (place.mode == RopeMode::separate) f.to_rotated = place.rotated_key(rotation, place.c, 0);
      },
      [&](int stage, int row) { f.tile(stage, row); },
      [&](int stage, int row) {
        f.x.flush(stage, to, y.t, 0, place.count - row, left, conv.aligned16);
        to += kTile * y.t;
      });
}

}  // namespace

void conv_forward(cudaStream_t stream, const ConvRopeForward& args) {
  const ConstTensor& x_BTC = args.x_BTC;
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2);
  if (B * T * C == 0) return;
  check_args(Device::cuda, args.conv());
  const bool aligned16 = rows_aligned16({args.y_BTC, x_BTC, args.halo_BWC});
  dispatch_activation(x_BTC.dtype(), [&]<class A>() {
    const Rotation<A> rotation = make_rotation<A>(args, args.k_rot_BPHD);
    dispatch_conv<A>(args.w_CW.size(1), rotation.dim, [&]<int kTaps, int kThreads, bool kRope>(int64_t span) {
      const Conv<A> conv =
          make_conv<A>(x_BTC, args.halo_BWC, args.w_CW, args.b_C, aligned16, span, at_once<kWarps<kRope>, kThreads>);
      launch(stream, grid_of(conv), kThreads, Tiles<A, kThreads, kRope>::kBytes,
             forward_kernel<A, kTaps, kThreads, kRope>, conv, rotation, planes<A>(args.y_BTC));
    });
  });
}

}  // namespace tmamba::cuda
