#include "kernels/cuda/conv.cuh"
#include "kernels/cuda/conv.h"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/op_checks.h"

namespace tmamba::cuda {

namespace {

constexpr int64_t kBlocks = 660;  // twice these where strips differ in work: some turn

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
  bool halo;  // the strip is the sequence's first, and the rows before it have a gradient
  bool keys;  // this thread's channels are keys whose rotated form lies apart
  Window<A, kTaps> window;
  Angles<A> angles;
  Acc<A> dw[kTaps][kWidth], db[kWidth];
  Acc<A> dpre[kTaps][kWidth];  // of the window's tokens

  // The gradient of the plain channels of token `row` of the strip.
  template <bool kInterior, Turn kTurn>
  __device__ Pair<A> gradient(int stage, int i, int row) {
    const StoredPair<A> own = dy.at(stage, i);
    const Pair<A> plain = own.widened();
    if constexpr (kTurn == Turn::none) {
      return plain;
    } else {
      StoredPair<A> rotated = own;
      if (kTurn == Turn::apart && keys) rotated = dk.at(stage, i);
      Pair<A> out = angles.turned(rotated.widened(), rotated.partner().widened());
      angles.advance();
      if (!kInterior && row >= place.turned) return plain;
      if (kTurn == Turn::apart) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) out.v[e] += keys ? plain.v[e] : Acc<A>(0);
      }
      return out;
    }
  }

  // dx of token `row`, before the sequence of the halo: it feeds output row + n by tap kBack - n, and of these tokens
  // all are known. kInterior: the row is one of the strip wherever `here` is.
  template <bool kInterior>
  __device__ void store_row(int row, bool here) {
    Pair<A> dx;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      dx.v[e] = 0;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) dx.v[e] += window.w[kBack - j][e] * dpre[j][e];
    }
    const StoredPair<A> stored = rounded<A>(dx);
    if (kInterior ? here : row >= 0 && row < place.count) {
      store_pair(to, stored, place.left, kInterior || both);
    } else if (!kInterior && halo && row < 0 && row + conv.W - 1 >= 0) {
      store_pair(gradients.dhalo.at(place.b, row + conv.W - 1) + place.c, stored, place.left, both);
    }
    to += gradients.dx.t;
  }

  // The tokens [row, row + kTile) of the strip and the kBack behind it. kInterior: every one is one of the strip, with
  // both channels, and before it is no halo's gradient; where they turn all are of the prefix.
  template <bool kInterior, Turn kTurn>
  __device__ void compute(int stage, int row) {
    const bool behind_first = row > 0;
#pragma unroll(kInterior ? kUnrolled : 1)
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
      store_row<kInterior>(row + i - kBack, i >= kBack || behind_first);
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
  const bool apart = kRope && place.keys_apart(rotation);
  if (apart) keys = place.rotated_key(rotation, piece, first);
  const bool halo = place.begin == 0 && gradients.dhalo.data != nullptr;
  const bool both = conv.wide && place.left >= kWidth;
  Backward<A, kTaps> f{conv,
                       gradients,
                       place,
                       {shared, 0, conv.x.at(place.b, place.begin + first) + piece},
                       {shared, 1, gradients.dy.at(place.b, place.begin + first) + piece},
                       {shared, 2, keys},
                       gradients.dx.at(place.b, place.begin - kBack) + place.c,
                       both,
                       halo,
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
        f.x.start(stage, there - row, conv.x.t, left, conv.wide);
        f.dy.start(stage, there - row, gradients.dy.t, left, conv.wide);
        if (!apart) return;
        const int rotated = there < place.turned ? there : place.turned;
        f.dk.start(stage, rotated - row, rotation.k_rot.t, keys != nullptr ? left : 0, rotation.wide);
      },
      [&] {
        f.window.begin(conv, place);
        if (kRope && place.turned > 0) f.angles.begin(rotation, place, -1);
      },
      [&](int stage, int row) {
        static_assert(kUnrolled >= kBack);
        const bool interior = both && !(halo && row == 0) && row + kTile <= place.count;
        if constexpr (kRope) {
          if (row < place.turned) {
            const bool all = interior && row + kTile <= place.turned;
            return apart ? f.template compute<Turn::apart>(stage, row, all)
                         : f.template compute<Turn::in_place>(stage, row, all);
          }
        }
        f.template compute<Turn::none>(stage, row, interior);
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
  check_conv_silu_backward(Device::cuda, args.dx_BTC, args.dhalo_BWC, args.dw_CW, args.db_C, dy_BTC, x_BTC,
                           args.halo_BWC, args.w_CW, args.b_C);
  const bool wide = wide_rows({args.dx_BTC, args.dhalo_BWC, dy_BTC, x_BTC, args.halo_BWC});
  dispatch_activation(dtype, [&]<class A>() {
    const Conv<A> conv =
        make_conv<A>(x_BTC, args.halo_BWC, args.w_CW, args.b_C, wide, kBlocks * (args.prefix > 0 ? 2 : 1));
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
