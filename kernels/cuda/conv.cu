// Depthwise causal convolution and SiLU. A block walks over a strip of tokens in tiles, which come into shared memory
// while the one before is computed; a thread owns kWidth channels and keeps the rows that its taps reach back to in
// registers. kTaps >= W taps; those before the first are zero and read nothing.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/views.h"

namespace tmamba::cuda {

namespace {

constexpr int kStrip = 128;    // tokens per block
constexpr int kTile = 16;      // tokens in shared memory at a time
constexpr int kStages = 2;     // tiles: one in use, the others on their way
constexpr int kGroup = 4;      // tokens that a thread computes at a time
constexpr int kThreads = 128;  // side by side across channels
constexpr int kWidth = 2;      // channels per thread
constexpr int kChannels = kThreads * kWidth;
constexpr int kMostTaps = 8;

template <class A>
struct Conv {
  Planes<const A> x, halo;
  Rows<const A> w;
  const A* bias;
  int64_t B, T, C, W;
  int64_t strips;  // per sequence
  bool wide;       // x, halo and the outputs
};

// The channels and the tokens of this block and thread.
template <class A>
struct Place {
  int64_t b, begin, end, block_c, c, left;
  __device__ explicit Place(const Conv<A>& conv) {
    block_c = static_cast<int64_t>(blockIdx.x) * kChannels;
    c = block_c + threadIdx.x * kWidth;
    left = conv.C - c;
    const DivMod at(blockIdx.y, conv.strips);
    b = at.quotient;
    begin = at.remainder * kStrip;
    end = begin + kStrip < conv.T ? begin + kStrip : conv.T;
  }
};

// One tensor's tiles in shared memory.
template <class A>
struct Tiles {
  A (*rows)[kTile][kChannels];  // [kStages]
  __device__ explicit Tiles(void* shared, int tensor)
      : rows(reinterpret_cast<A (*)[kTile][kChannels]>(shared) + tensor * kStages) {}
  static constexpr size_t kBytes = sizeof(A) * kStages * kTile * kChannels;

  // Starts to load tokens [t, t + kTile) of all channels of the block; zeros from `end` on and beyond the channels.
  __device__ void start(int stage, const Planes<const A>& from, const Place<A>& place, int64_t t, int64_t end,
                        int64_t C, bool wide) const {
    constexpr int kPieces = kChannels / kVec<A>;  // of a row
    for (int i = threadIdx.x; i < kTile * kPieces; i += kThreads) {
      const int row = i / kPieces, column = i % kPieces * kVec<A>;
      const int64_t c = place.block_c + column, left = t + row < end ? C - c : 0;
      A* to = &rows[stage][row][column];
      if (wide && left >= kVec<A>) {
        copy_async_16(to, from.at(place.b, t + row) + c, true);
      } else {
        *reinterpret_cast<Raw<A>*>(to) = load(from.at(place.b, t + row) + c, left, false);
      }
    }
  }
  // This thread's channels of row `row`.
  __device__ Acc<A> at(int stage, int row, int e) const { return widen(rows[stage][row][threadIdx.x * kWidth + e]); }
};

// Weights, bias and inputs of a group of tokens.
template <class A, int kTaps>
struct Window {
  static constexpr int kBack = kTaps - 1;
  Acc<A> w[kTaps][kWidth], bias[kWidth];
  Acc<A> x[kBack + kGroup][kWidth];  // of tokens group - kBack .. group + kGroup - 1

  __device__ Window(const Conv<A>& conv, const Place<A>& place) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const bool here = e < place.left;
      bias[e] = here ? widen(conv.bias[place.c + e]) : Acc<A>(0);
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        const int tap = j - (kTaps - static_cast<int>(conv.W));
        w[j][e] = here && tap >= 0 ? widen(conv.w[place.c + e][tap]) : Acc<A>(0);
      }
#pragma unroll
      for (int j = 0; j < kBack; ++j) x[kGroup + j][e] = here ? before(conv, place, place.begin - kBack + j, e) : 0;
    }
  }

  // Of token t < begin; zeros where the convolution does not reach.
  __device__ static Acc<A> before(const Conv<A>& conv, const Place<A>& place, int64_t t, int e) {
    const int64_t reach = conv.W - 1;
    if (t >= 0) return widen(conv.x.at(place.b, t)[place.c + e]);
    if (t < -reach || conv.halo.data == nullptr) return 0;
    return widen(conv.halo.at(place.b, t + reach)[place.c + e]);
  }

  // Takes in the group at rows [row, row + kGroup) of a tile.
  __device__ void advance(const Tiles<A>& tiles, int stage, int row) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
#pragma unroll
      for (int j = 0; j < kBack; ++j) x[j][e] = x[kGroup + j][e];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) x[kBack + i][e] = tiles.at(stage, row + i, e);
    }
  }

  // Of token i of the group.
  __device__ Acc<A> pre_activation(int i, int e) const {
    Acc<A> sum = bias[e];
#pragma unroll
    for (int j = 0; j < kTaps; ++j) sum += w[j][e] * x[i + j][e];
    return sum;
  }
};

// Calls f(stage, first token) for each tile of tokens [begin, end), with start(stage, first token) issued kStages - 1
// tiles ahead.
template <class Start, class F>
__device__ void for_each_tile(int64_t begin, int64_t end, Start start, F f) {
  for (int ahead = 0; ahead < kStages - 1; ++ahead) {
    if (begin + ahead * kTile < end) start(ahead, begin + ahead * kTile);
    commit_copies();
  }
  int stage = 0;
  for (int64_t t = begin; t < end; t += kTile) {
    const int64_t next = t + (kStages - 1) * kTile;
    if (next < end) start((stage + kStages - 1) % kStages, next);
    commit_copies();
    wait_copies<kStages - 1>();
    __syncthreads();
    f(stage, t);
    __syncthreads();
    stage = (stage + 1) % kStages;
  }
}

// `pair`: both channels are there, and aligned.
template <class A>
__device__ void store_channels(A* to, const Acc<A> (&x)[kWidth], int64_t left, bool pair) {
  if constexpr (std::is_same_v<A, bf16_t>) {
    if (pair) {
      *reinterpret_cast<uint32_t*>(to) = pack_bf16(x[0], x[1]);
      return;
    }
  }
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    if (e < left) to[e] = narrow<A>(x[e]);
  }
}

template <class A, int kTaps>
__global__ void __launch_bounds__(kThreads) forward_kernel(Conv<A> conv, Planes<A> y) {
  extern __shared__ uint4 shared[];
  const Place<A> place(conv);
  const Tiles<A> x(shared, 0);
  const bool pair = conv.wide && place.left >= kWidth;
  Window<A, kTaps> window(conv, place);
  // kInterior: every token of the tile is one of the strip, and every channel one of the tensor.
  const auto compute = [&]<bool kInterior>(int stage, int64_t t) {
    A* to = y.at(place.b, t) + place.c;
#pragma unroll
    for (int row = 0; row < kTile; row += kGroup) {
      window.advance(x, stage, row);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        Acc<A> out[kWidth];
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          const Acc<A> pre = window.pre_activation(i, e);
          out[e] = pre * sigmoid<A>(pre);
        }
        if (kInterior || t + row + i < place.end) store_channels(to, out, place.left, kInterior || pair);
        to += y.t;
      }
    }
  };
  for_each_tile(
      place.begin, place.end,
      [&](int stage, int64_t t) { x.start(stage, conv.x, place, t, place.end, conv.C, conv.wide); },
      [&](int stage, int64_t t) {
        if (pair && t + kTile <= place.end) {
          compute.template operator()<true>(stage, t);
        } else {
          compute.template operator()<false>(stage, t);
        }
      });
}

template <class A>
struct Backward {
  Conv<A> conv;
  Planes<A> dx, dhalo;
  Planes<const A> dy;
  Acc<A>* partial;  // [strips of all sequences, W + 1, C]: taps, then the bias
};

template <class A, int kTaps>
__global__ void __launch_bounds__(kThreads) backward_kernel(Backward<A> f) {
  constexpr int kBack = kTaps - 1;
  extern __shared__ uint4 shared[];
  const Conv<A>& conv = f.conv;
  const Place<A> place(conv);
  const Tiles<A> x(shared, 0), dy(shared, 1);
  Window<A, kTaps> window(conv, place);
  Acc<A> dw[kTaps][kWidth] = {}, db[kWidth] = {};
  Acc<A> dpre[kBack + kGroup][kWidth] = {};  // of the window's tokens
  const bool pair = conv.wide && place.left >= kWidth;
  // kInterior: every token of the tile, and every row that its groups complete, is one of the strip.
  const auto compute = [&]<bool kInterior>(int stage, int64_t t) {
    A* to = f.dx.at(place.b, t - kBack) + place.c;
#pragma unroll
    for (int row = 0; row < kTile; row += kGroup) {
      window.advance(x, stage, row);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
#pragma unroll
        for (int j = 0; j < kBack; ++j) dpre[j][e] = dpre[kGroup + j][e];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          const Acc<A> pre = window.pre_activation(i, e), s = sigmoid<A>(pre);
          const Acc<A> d = dy.at(stage, row + i, e) * s * (1 + pre * (1 - s));
          dpre[kBack + i][e] = d;
          const Acc<A> counted = kInterior || t + row + i < place.end ? d : Acc<A>(0);
          db[e] += counted;
#pragma unroll
          for (int j = 0; j < kTaps; ++j) dw[j][e] += counted * window.x[i + j][e];
        }
      }
      // Row s feeds output s + n by tap kBack - n: of rows s = t + row - kBack + i all of them are known now.
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        Acc<A> dx[kWidth] = {};
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
#pragma unroll
          for (int j = 0; j < kTaps; ++j) dx[e] += window.w[kBack - j][e] * dpre[i + j][e];
        }
        const int64_t s = t + row - kBack + i;
        if (kInterior || (s >= place.begin && s < place.end)) {
          store_channels(to, dx, place.left, kInterior || pair);
        } else if (s < 0 && s + conv.W - 1 >= 0 && f.dhalo.data != nullptr) {
          store_channels(f.dhalo.at(place.b, s + conv.W - 1) + place.c, dx, place.left, pair);
        }
        to += f.dx.t;
      }
    }
  };
  // The tokens behind the strip that its last rows feed belong to the next one, and are computed here again.
  for_each_tile(
      place.begin, place.end + kBack,
      [&](int stage, int64_t t) {
        x.start(stage, conv.x, place, t, conv.T, conv.C, conv.wide);
        dy.start(stage, f.dy, place, t, conv.T, conv.C, conv.wide);
      },
      [&](int stage, int64_t t) {
        if (pair && t - kBack >= place.begin && t + kTile <= place.end) {
          compute.template operator()<true>(stage, t);
        } else {
          compute.template operator()<false>(stage, t);
        }
      });
  Acc<A>* line = f.partial + blockIdx.y * (conv.W + 1) * conv.C;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    if (e >= place.left) break;
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      const int64_t tap = j - (kTaps - conv.W);
      if (tap >= 0) line[tap * conv.C + place.c + e] = dw[j][e];
    }
    line[conv.W * conv.C + place.c + e] = db[e];
  }
}

template <class A>
Conv<A> make_conv(const ConstTensor& x_BTC, const ConstTensor& halo_BWC, const ConstTensor& w_CW,
                  const ConstTensor& b_C, bool wide) {
  return {planes<A>(x_BTC),
          planes<A>(halo_BWC),
          rows<A>(w_CW),
          b_C.data<A>(),
          x_BTC.size(0),
          x_BTC.size(1),
          x_BTC.size(2),
          w_CW.size(1),
          ceil_div(x_BTC.size(1), kStrip),
          wide};
}

void expect_inputs(const ConstTensor& x_BTC, const ConstTensor& halo_BWC, const ConstTensor& w_CW,
                   const ConstTensor& b_C) {
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2), W = w_CW.size(1);
  const DType dtype = x_BTC.dtype();
  TM_CHECK(W >= 1 && W <= kMostTaps, "conv w_CW ", w_CW.shape(), ": 1 to ", kMostTaps,
           " taps are supported on the GPU");
  expect(x_BTC, "conv x_BTC", dtype, {B, T, C});
  expect_optional(halo_BWC, "conv halo_BWC", dtype, {B, W - 1, C});
  expect(w_CW, "conv w_CW", dtype, {C, W});
  expect(b_C, "conv b_C", dtype, {C});
}

template <class A>
Grid grid_of(const Conv<A>& conv) {
  return {ceil_div(conv.C, kChannels), conv.B * conv.strips};
}

// Calls f.template operator()<kTaps>().
template <class F>
void dispatch_taps(int64_t W, const F& f) {
  if (W == 4) return f.template operator()<4>();
  f.template operator()<kMostTaps>();
}

}  // namespace

void CudaOps::conv_silu_forward(Tensor y_BTC, ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW,
                                ConstTensor b_C) {
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2);
  if (B * T * C == 0) return;
  expect_inputs(x_BTC, halo_BWC, w_CW, b_C);
  expect(y_BTC, "conv y_BTC", x_BTC.dtype(), {B, T, C});
  const bool wide = wide_rows({y_BTC, x_BTC, halo_BWC});
  dispatch_activation(x_BTC.dtype(), [&]<class A>() {
    const Conv<A> conv = make_conv<A>(x_BTC, halo_BWC, w_CW, b_C, wide);
    dispatch_taps(conv.W, [&]<int kTaps>() {
      launch(stream(), grid_of(conv), kThreads, Tiles<A>::kBytes, forward_kernel<A, kTaps>, conv, planes<A>(y_BTC));
    });
  });
}

void CudaOps::conv_silu_backward(Tensor dx_BTC, Tensor dhalo_BWC, Tensor dw_CW, Tensor db_C, ConstTensor dy_BTC,
                                 ConstTensor x_BTC, ConstTensor halo_BWC, ConstTensor w_CW, ConstTensor b_C) {
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2), W = w_CW.size(1);
  const DType dtype = x_BTC.dtype();
  if (!dhalo_BWC.empty() && T == 0) fill(dhalo_BWC, 0);
  if (B * T * C == 0) return;
  expect_inputs(x_BTC, halo_BWC, w_CW, b_C);
  expect(dx_BTC, "conv dx_BTC", dtype, {B, T, C});
  expect_optional(dhalo_BWC, "conv dhalo_BWC", dtype, {B, W - 1, C});
  expect(dw_CW, "conv dw_CW", accumulate_type(dtype), {C, W});
  expect(db_C, "conv db_C", accumulate_type(dtype), {C});
  expect(dy_BTC, "conv dy_BTC", dtype, {B, T, C});
  const bool wide = wide_rows({dx_BTC, dhalo_BWC, dy_BTC, x_BTC, halo_BWC});
  dispatch_activation(dtype, [&]<class A>() {
    const Conv<A> conv = make_conv<A>(x_BTC, halo_BWC, w_CW, b_C, wide);
    const Grid grid = grid_of(conv);
    Acc<A>* partial = workspace_.take<Acc<A>>(grid.y * (W + 1) * C);
    const Backward<A> f{conv, planes<A>(dx_BTC), planes<A>(dhalo_BWC), planes<A>(dy_BTC), partial};
    dispatch_taps(
        W, [&]<int kTaps>() { launch(stream(), grid, kThreads, 2 * Tiles<A>::kBytes, backward_kernel<A, kTaps>, f); });
    // Two targets in lines of (W + 1) C: the taps go to dw transposed, the rest to db.
    const int64_t width = (W + 1) * C;
    add_lines<Acc<A>>(stream(), {dw_CW.data<Acc<A>>(), C, 1, dw_CW.stride(0)}, partial, grid.y, W * C, width);
    add_lines<Acc<A>>(stream(), {db_C.data<Acc<A>>(), C, C, 1}, partial + W * C, grid.y, C, width);
  });
}

}  // namespace tmamba::cuda
