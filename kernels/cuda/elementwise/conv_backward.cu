#include "kernels/cuda/common/partial_sums.cuh"
#include "kernels/cuda/elementwise/conv.h"
#include "kernels/cuda/elementwise/conv_window.cuh"

namespace tmamba::cuda {

namespace {

// Resident warps per SM: few, so that each has registers to overlap the instructions of several tokens.
template <bool kRope>
constexpr int kWarps = kRope ? 12 : 16;

template <class A>
struct Gradients {
  Planes<A> dx, dhalo;
  Planes<const A> dy;
  Acc<A>* partial;  // [strips of all sequences, W + 1, C]: taps, then the bias
};

template <class A, int kTaps, int kThreads, bool kRope>
struct Backward {
  static constexpr int kBack = kTaps - 1;
  static_assert(kTile >= kBack);
  const Conv<A>& conv;
  const Gradients<A>& gradients;
  const Place<A, kRope> place;
  Tiles<A, kThreads, kRope> x, dy, dk;  // dk: of rotated keys, if stored separately
  bool halo;                            // this is the sequence's first strip, and dhalo is wanted
  Window<A, kTaps, kRope> window;
  Angles<A> angles;
  Acc<A> dw[kTaps][kWidth<A>], db[kWidth<A>];
  Acc<A> dpre[kTaps][kWidth<A>];  // of the window's tokens

  // The gradient of token i's plain channels.
  __device__ Group<A> gradient(int stage, int i, RopeMode mode) {
    const Group<A> plain = dy.at(stage, i).widened();
    if (mode == RopeMode::none) return plain;
    Group<A> out = angles.rotated(mode == RopeMode::separate ? dk.at(stage, i).widened() : plain);
    angles.advance();
    if (mode == RopeMode::separate) {
#pragma unroll
      for (int e = 0; e < kWidth<A>; ++e) out.v[e] += plain.v[e];
    }
    return out;
  }

  // dx of the token kBack before the window's last. It feeds the output n tokens after it through tap kBack - n, and
  // the window holds all these tokens.
  __device__ StoredGroup<A> input_gradient() const {
    Group<A> dx;
#pragma unroll
    for (int e = 0; e < kWidth<A>; ++e) {
      dx.v[e] = 0;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) dx.v[e] += window.w[kBack - j][e] * dpre[j][e];
    }
    return StoredGroup<A>::rounded(dx);
  }

  // Computes token i of a tile; dx of the token kBack before it replaces it. `counted`: whether this strip adds the
  // token's part of the weight gradients.
  __device__ void token(int stage, int i, RopeMode mode, bool counted) {
    window.advance(x.at(stage, i));
    const Group<A> dout = gradient(stage, i, mode);
#pragma unroll
    for (int e = 0; e < kWidth<A>; ++e) {
#pragma unroll
      for (int j = 0; j < kBack; ++j) dpre[j][e] = dpre[j + 1][e];
      const Acc<A> pre = window.pre_activation(e), s = sigmoid<A>(pre);
      const Acc<A> d = dout.v[e] * (s + pre * s * (1 - s));
      dpre[kBack][e] = d;
      const Acc<A> own = counted ? d : Acc<A>(0);
      db[e] += own;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) dw[j][e] += own * window.x[j][e];
    }
    x.put(stage, i, input_gradient());
  }

  template <RopeMode kMode>
  __device__ void whole_tile(int stage) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) token(stage, i, kMode, true);
  }

  // Computes the kBack tokens after the strip, at the beginning of a tile.
  template <RopeMode kMode>
  __device__ void tokens_after(int stage) {
#pragma unroll
    for (int i = 0; i < kBack; ++i) token(stage, i, kMode, false);
  }

  // Computes tokens [row, row + kTile) of the strip and the kBack tokens after it.
  __device__ void tile(int stage, int row) {
    if (!place.here) return;
    if (row == place.count && row >= kBack) {
      if (row >= place.rotated) return tokens_after<RopeMode::none>(stage);
      if constexpr (kRope) {
        if (row + kBack <= place.rotated) {
          return place.mode == RopeMode::separate ? tokens_after<RopeMode::separate>(stage)
                                                  : tokens_after<RopeMode::in_place>(stage);
        }
      }
    }
    const bool whole = !(halo && row == 0) && row + kTile <= place.count;
    if (whole && row >= place.rotated) return whole_tile<RopeMode::none>(stage);
    if constexpr (kRope) {
      if (whole && row + kTile <= place.rotated) {
        return place.mode == RopeMode::separate ? whole_tile<RopeMode::separate>(stage)
                                                : whole_tile<RopeMode::in_place>(stage);
      }
    }
#pragma unroll 1
    for (int i = 0; i < kTile && row + i < place.count + kBack; ++i) {
      token(stage, i, kRope && row + i < place.rotated ? place.mode : RopeMode::none, row + i < place.count);
      const int64_t before = row + i - kBack + conv.W - 1;  // the halo's row
      if (!halo || row + i >= kBack || before < 0) continue;
      store_group(gradients.dhalo.at(place.b, before) + place.c, place.upper, x.at(stage, i), conv.C - place.c, false);
    }
  }

  __device__ void store_sums() const {
    if (!place.here) return;
    Acc<A>* const partial_row = gradients.partial + place.strip * (conv.W + 1) * conv.C;
#pragma unroll
    for (int e = 0; e < kWidth<A>; ++e) {
      const int64_t c = place.channel(e);
      if (c >= conv.C) continue;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        const int64_t tap = j - (kTaps - conv.W);
        if (tap >= 0) partial_row[tap * conv.C + c] = dw[j][e];
      }
      partial_row[conv.W * conv.C + c] = db[e];
    }
  }
};

template <class A, int kTaps, int kThreads, bool kRope>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 2 && kTaps == 4 ? kWarps<kRope> * kWarp / kThreads : 1)
    backward_kernel(const __grid_constant__ Conv<A> conv, const __grid_constant__ Rotation<A> rotation,
                    const __grid_constant__ Gradients<A> gradients) {
  constexpr int kBack = kTaps - 1;
  extern __shared__ uint4 shared[];
  launch_dependent_grids();
  using X = Tiles<A, kThreads, kRope>;
  const Place<A, kRope> place(conv, rotation);
  const int64_t vector = place.first + X::column(), left = X::left(conv, place), row_here = place.begin + X::row();
  const A* const keys = kRope ? place.rotated_key(rotation, vector, X::row()) : nullptr;
  A* to = gradients.dx.at(place.b, row_here - kBack) + vector;
  Backward<A, kTaps, kThreads, kRope> f{conv,
                                        gradients,
                                        place,
                                        {shared, 0, place, conv.x.at(place.b, row_here) + vector},
                                        {shared, 1, place, gradients.dy.at(place.b, row_here) + vector},
                                        {shared, 2, place, keys},
                                        place.begin == 0 && gradients.dhalo.data != nullptr,
                                        {},
                                        {},
                                        {},
                                        {},
                                        {}};
  // The strip's last rows feed kBack tokens after it. These belong to the next strip and are recomputed here.
  const int64_t remaining = conv.T - place.begin, prefix_left = rotation.prefix - place.begin;
  const int there = static_cast<int>(remaining < place.count + kBack ? remaining : place.count + kBack);
  const int keys_there = static_cast<int>(prefix_left < there ? prefix_left : there);
  for_each_tile(
      place.count + kBack,
      [&](int stage, int row) {
        f.x.start(stage, there - row, conv.x.t, left, conv.aligned16);
        f.dy.start(stage, there - row, gradients.dy.t, left, conv.aligned16);
        if (keys != nullptr && row < keys_there) {
          f.dk.start(stage, keys_there - row, rotation.k_rot.t, left, rotation.aligned16);
        }
      },
      [&] {
        f.window.begin(conv, place);
        if (kRope && place.rotated > 0) f.angles.begin(rotation, place.c, place.begin, -1);
      },
      [&](int stage, int row) { f.tile(stage, row); },
      [&](int stage, int row) {
        f.x.flush(stage, to, gradients.dx.t, kBack - row, place.count + kBack - row, left, conv.aligned16);
        to += kTile * gradients.dx.t;
      });
  f.store_sums();
}

// Maps column i of a partial row: the taps to dw transposed, the rest to db.
template <class T>
struct TapsAndBias {
  T *dw, *db;
  int64_t C, W, stride;
  __device__ T* at(int64_t i) const { return i < W * C ? dw + i % C * stride + i / C : db + (i - W * C); }
};

}  // namespace

void conv_backward(cudaStream_t stream, Workspace& workspace, const ConvRopeBackward& args, const ConstTensor& dy_BTC) {
  const ConstTensor& x_BTC = args.x_BTC;
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2), W = args.w_CW.size(1);
  const DType dtype = x_BTC.dtype();
  if (B * T * C == 0) return;
  ConvSiluBackward conv = args.conv();
  conv.dy_BTC = dy_BTC;
  check_args(Device::cuda, conv);
  const bool aligned16 = rows_aligned16({args.dx_BTC, args.dhalo_BWC, dy_BTC, x_BTC, args.halo_BWC});
  dispatch_activation(dtype, [&]<class A>() {
    const Rotation<A> rotation = make_rotation<A>(args, args.dk_rot_BPHD);
    dispatch_conv<A>(W, rotation.dim, [&]<int kTaps, int kThreads, bool kRope>(int64_t span) {
      const Conv<A> conv =
          make_conv<A>(x_BTC, args.halo_BWC, args.w_CW, args.b_C, aligned16, span, at_once<kWarps<kRope>, kThreads>);
      const int64_t partial_rows = B * conv.strips, width = (W + 1) * C;
      Acc<A>* partial = workspace.take<Acc<A>>(partial_rows * width);
      const Gradients<A> gradients{planes<A>(args.dx_BTC), planes<A>(args.dhalo_BWC), planes<A>(dy_BTC), partial};
      const size_t tensors = rotation.k_rot.data != nullptr ? 3 : 2;
      launch(stream, grid_of(conv), kThreads, tensors * Tiles<A, kThreads, kRope>::kBytes,
             backward_kernel<A, kTaps, kThreads, kRope>, conv, rotation, gradients);
      const TapsAndBias<Acc<A>> out{args.dw_CW.data<Acc<A>>(), args.db_C.data<Acc<A>>(), C, W, args.dw_CW.stride(0)};
      add_partial_rows(stream, out, partial, partial_rows, width);
    });
  });
}

}  // namespace tmamba::cuda
