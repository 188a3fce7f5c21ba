#include "kernels/cuda/conv.cuh"
#include "kernels/cuda/conv.h"
#include "kernels/cuda/partial_sums.cuh"

namespace tmamba::cuda {

namespace {

template <class A>
struct Gradients {
  Planes<A> dx, dhalo;
  Planes<const A> dy;
  Acc<A>* partial;  // [strips of all sequences, W + 1, C]: taps, then the bias
};

template <class A, int kTaps>
struct Backward {
  static constexpr int kBack = kTaps - 1;
  const Conv<A>& conv;
  const Gradients<A>& gradients;
  const Place<A> place;
  Tiles<A> x, dy, dk;  // dk: of the rotated keys, where they lie apart
  A* to;               // of dx, kBack rows behind the next token
  bool both;
  bool apart, keys;  // the block has rotated keys that lie apart, and they are this thread's
  Window<A, kTaps> window;
  Angles<A> angles;
  Acc<A> dw[kTaps][kWidth], db[kWidth];
  Acc<A> dpre[kTaps][kWidth];  // of the window's tokens

  // The gradient of token `row` of the strip before the rotation.
  template <bool kInterior, bool kTurn>
  __device__ Pair<A> gradient(int stage, int i, int row) {
    const StoredPair<A> own = dy.at(stage, i);
    const Pair<A> plain = own.widened();
    if constexpr (!kTurn) {
      return plain;
    } else {
      const StoredPair<A> rotated = keys ? dk.at(stage, i) : own;
      Pair<A> out = angles.turned(rotated.widened(), rotated.partner().widened());
      angles.advance();
      if (!kInterior && row >= place.turned) return plain;
      if (apart) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) out.v[e] += keys ? plain.v[e] : Acc<A>(0);
      }
      return out;
    }
  }

  // dx of token `row`, before the sequence of the halo: it feeds output row + n by tap kBack - n, and of these tokens
  // all are known.
  template <bool kInterior>
  __device__ void store_row(int row) {
    Pair<A> dx;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      dx.v[e] = 0;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) dx.v[e] += window.w[kBack - j][e] * dpre[j][e];
    }
    const StoredPair<A> stored = rounded<A>(dx);
    if (kInterior || (row >= 0 && row < place.count)) {
      store_pair(to, stored, place.left, kInterior || both);
    } else if (gradients.dhalo.data != nullptr && place.begin == 0 && row < 0 && row + conv.W - 1 >= 0) {
      store_pair(gradients.dhalo.at(place.b, row + conv.W - 1) + place.c, stored, place.left, both);
    }
    to += gradients.dx.t;
  }

  // The tokens [row, row + kTile) of the strip and the kBack behind it. kInterior: every one of them, and every row that
  // they complete, is one of the strip; both channels are there; kTurn: all are of the prefix.
  template <bool kInterior, bool kTurn>
  __device__ void compute(int stage, int row) {
#pragma unroll(kInterior ? kTile : 1)
    for (int i = 0; i < kTile; ++i) {
      if (!kInterior && row + i >= place.count + kBack) break;
      window.advance(x.at(stage, i));
      const Pair<A> dout = gradient<kInterior, kTurn>(stage, i, row + i);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
#pragma unroll
        for (int j = 0; j < kBack; ++j) dpre[j][e] = dpre[j + 1][e];
        const Acc<A> pre = window.pre_activation(e), s = sigmoid<A>(pre);
        const Acc<A> d = dout.v[e] * (s + pre * s * (1 - s));
        dpre[kBack][e] = d;
        const Acc<A> counted = kInterior || row + i < place.count ? d : Acc<A>(0);
        db[e] += counted;
#pragma unroll
        for (int j = 0; j < kTaps; ++j) dw[j][e] += counted * window.x[j][e];
      }
      store_row<kInterior>(row + i - kBack);
    }
  }

  __device__ void store_sums() const {
    Acc<A>* line = gradients.partial + place.strip * (conv.W + 1) * conv.C + place.c;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      if (e >= place.left) break;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        const int64_t tap = j - (kTaps - conv.W);
        if (tap >= 0) line[tap * conv.C + e] = dw[j][e];
      }
      line[conv.W * conv.C + e] = db[e];
    }
  }
};

template <class A, int kTaps, bool kRope>
__global__ void __launch_bounds__(kConvThreads, sizeof(A) == 2 && kTaps == 4 ? 5 : 1)
    backward_kernel(const __grid_constant__ Conv<A> conv, const __grid_constant__ Rotation<A> rotation,
                    const __grid_constant__ Gradients<A> gradients) {
  constexpr int kBack = kTaps - 1;
  extern __shared__ uint4 shared[];
  const Place<A> place(conv, rotation);
  const int first = Tiles<A>::row();
  const int64_t piece = place.channel(conv, rotation, Tiles<A>::column()), left = conv.C - piece;
  const A* keys = nullptr;
  if (kRope && rotation.k_rot.data != nullptr) keys = place.rotated_key(rotation, piece, first);
  const bool apart = kRope && rotation.k_rot.data != nullptr && place.slot + kChannels > rotation.inner;
  const bool both = conv.wide && place.left >= kWidth;
  Backward<A, kTaps> f{conv,
                       gradients,
                       place,
                       {shared, 0, conv.x.at(place.b, place.begin + first) + piece, conv.x.t, left, conv.wide},
                       {shared, 1, gradients.dy.at(place.b, place.begin + first) + piece, gradients.dy.t, left,
                        conv.wide},
                       {shared, 2, keys, rotation.k_rot.t, keys != nullptr ? left : 0, rotation.wide},
                       gradients.dx.at(place.b, place.begin - kBack) + place.c,
                       both,
                       apart,
                       apart && place.which == 1,
                       {},
                       {},
                       {},
                       {},
                       {}};
  // The tokens behind the strip that its last rows feed belong to the next one, and are computed here again.
  const int64_t behind = conv.T - place.begin;
  const int there = static_cast<int>(behind < place.count + kBack ? behind : place.count + kBack);
  for_each_tile(
      place.count + kBack,
      [&](int stage, int row) {
        f.x.start(stage, there - row);
        f.dy.start(stage, there - row);
        if (apart) f.dk.start(stage, (there < place.turned ? there : place.turned) - row);
      },
      [&] {
        f.window.begin(conv, place);
        if (kRope && place.turned > 0) f.angles.begin(rotation, place, -1);
      },
      [&](int stage, int row) {
        const bool interior = both && row >= kBack && row + kTile <= place.count;
        if (kRope && row < place.turned) {
          if (interior && row + kTile <= place.turned) {
            f.template compute<true, kRope>(stage, row);
          } else {
            f.template compute<false, kRope>(stage, row);
          }
        } else if (interior) {
          f.template compute<true, false>(stage, row);
        } else {
          f.template compute<false, false>(stage, row);
        }
      });
  f.store_sums();
}

// Line i of the sums: the taps go to dw transposed, the rest to db.
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
  expect_conv_inputs(x_BTC, args.halo_BWC, args.w_CW, args.b_C);
  expect(args.dx_BTC, "conv dx_BTC", dtype, {B, T, C});
  expect_optional(args.dhalo_BWC, "conv dhalo_BWC", dtype, {B, W - 1, C});
  expect(args.dw_CW, "conv dw_CW", accumulate_type(dtype), {C, W});
  expect(args.db_C, "conv db_C", accumulate_type(dtype), {C});
  expect(dy_BTC, "conv dy_BTC", dtype, {B, T, C});
  const bool wide = wide_rows({args.dx_BTC, args.dhalo_BWC, dy_BTC, x_BTC, args.halo_BWC});
  dispatch_activation(dtype, [&]<class A>() {
    const Conv<A> conv = make_conv<A>(x_BTC, args.halo_BWC, args.w_CW, args.b_C, wide);
    const Rotation<A> rotation = make_rotation<A>(args, args.dk_rot_BPHD);
    const int64_t lines = B * conv.strips, width = (W + 1) * C;
    Acc<A>* partial = workspace.take<Acc<A>>(lines * width);
    const Gradients<A> gradients{planes<A>(args.dx_BTC), planes<A>(args.dhalo_BWC), planes<A>(dy_BTC), partial};
    const size_t shared = Tiles<A>::kBytes * (rotation.k_rot.data != nullptr ? 3 : 2);
    dispatch_taps(W, [&]<int kTaps>() {
      const auto kernel = args.prefix > 0 ? backward_kernel<A, kTaps, true> : backward_kernel<A, kTaps, false>;
      launch(stream, grid_of(conv), kConvThreads, shared, kernel, conv, rotation, gradients);
    });
    const TapsAndBias<Acc<A>> out{args.dw_CW.data<Acc<A>>(), args.db_C.data<Acc<A>>(), C, W, args.dw_CW.stride(0)};
    add_lines(stream, out, partial, lines, width);
  });
}

}  // namespace tmamba::cuda
