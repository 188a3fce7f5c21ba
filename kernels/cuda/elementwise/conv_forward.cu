#include "kernels/cuda/elementwise/conv.cuh"
#include "kernels/cuda/elementwise/conv.h"

namespace tmamba::cuda {

namespace {

// Warps on a multiprocessor: few that have registers for several tokens' instructions side by side.
template <bool kRope>
constexpr int kWarps = kRope ? 16 : 20;

template <class A, int kTaps, int kThreads, bool kRope>
struct Forward {
  const Rotation<A>& rotation;
  const Place<A, kRope> place;
  Tiles<A, kThreads, kRope> x;
  Window<A, kTaps, kRope> window;
  Angles<A> angles;
  A* to_rotated;  // of the next token, where this thread's channels are keys and lie apart

  // Token i of a tile; what comes of it takes its place.
  __device__ void token(int stage, int i, Turn turn) {
    window.advance(x.at(stage, i));
    Group<A> out;
#pragma unroll
    for (int e = 0; e < kWidth<A>; ++e) {
      const Acc<A> pre = window.pre_activation(e);
      out.v[e] = pre * sigmoid<A>(pre);
    }
    StoredGroup<A> y = StoredGroup<A>::rounded(out);
    if (turn != Turn::none) {
      const StoredGroup<A> turned = StoredGroup<A>::rounded(angles.turned(y.widened()));
      angles.advance();
      if (turn == Turn::apart) {
        store_group(to_rotated, place.upper, turned, kWidth<A> + place.upper, rotation.wide);
        to_rotated += rotation.k_rot.t;
      } else {
        y = turned;
      }
    }
    x.put(stage, i, y);
  }

  template <Turn kTurn>
  __device__ void whole_tile(int stage) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) token(stage, i, kTurn);
  }

  // The tokens [row, row + kTile) of the strip.
  __device__ void tile(int stage, int row) {
    if (!place.here) return;
    const bool whole = row + kTile <= place.count;
    if (whole && row >= place.turned) return whole_tile<Turn::none>(stage);
    if constexpr (kRope) {
      if (whole && row + kTile <= place.turned) {
        return place.turn == Turn::apart ? whole_tile<Turn::apart>(stage) : whole_tile<Turn::in_place>(stage);
      }
    }
#pragma unroll 1
    for (int i = 0; i < kTile && row + i < place.count; ++i) {
      token(stage, i, kRope && row + i < place.turned ? place.turn : Turn::none);
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
  const int64_t piece = place.first + X::column(), left = X::left(conv, place);
  A* to = y.at(place.b, place.begin + X::row()) + piece;
  Forward<A, kTaps, kThreads, kRope> f{
      rotation, place, {shared, 0, place, conv.x.at(place.b, place.begin + X::row()) + piece}, {}, {}, nullptr};
  for_each_tile(
      place.count, [&](int stage, int row) { f.x.start(stage, place.count - row, conv.x.t, left, conv.wide); },
      [&] {
        f.window.begin(conv, place);
        if (!kRope || place.turned == 0) return;
        f.angles.begin(rotation, place.c, place.begin, 1);
        if (place.turn == Turn::apart) f.to_rotated = place.rotated_key(rotation, place.c, 0);
      },
      [&](int stage, int row) { f.tile(stage, row); },
      [&](int stage, int row) {
        f.x.flush(stage, to, y.t, 0, place.count - row, left, conv.wide);
        to += kTile * y.t;
      });
}

}  // namespace

void conv_forward(cudaStream_t stream, const ConvRopeForward& args) {
  const ConstTensor& x_BTC = args.x_BTC;
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2);
  if (B * T * C == 0) return;
  check_args(Device::cuda, args.conv());
  const bool wide = wide_rows({args.y_BTC, x_BTC, args.halo_BWC});
  dispatch_activation(x_BTC.dtype(), [&]<class A>() {
    const Rotation<A> rotation = make_rotation<A>(args, args.k_rot_BPHD);
    dispatch_conv<A>(args.w_CW.size(1), rotation.dim, [&]<int kTaps, int kThreads, bool kRope>(int64_t span) {
      const Conv<A> conv =
          make_conv<A>(x_BTC, args.halo_BWC, args.w_CW, args.b_C, wide, span, at_once<kWarps<kRope>, kThreads>);
      launch(stream, grid_of(conv), kThreads, Tiles<A, kThreads, kRope>::kBytes,
             forward_kernel<A, kTaps, kThreads, kRope>, conv, rotation, planes<A>(args.y_BTC));
    });
  });
}

}  // namespace tmamba::cuda
