// Depthwise causal convolution and SiLU: a thread owns 16 bytes of channels and walks over kStrip tokens with the rows
// that the taps reach back to in registers. kTaps >= W taps; those before the first are zero and read nothing.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/views.h"

namespace tmamba::cuda {

namespace {

constexpr int kStrip = 32;    // tokens per thread
constexpr int kStrips = 8;    // per block, one behind the other
constexpr int kColumns = 32;  // threads across channels
constexpr int kMostTaps = 8;

template <class A>
struct Conv {
  Planes<const A> x, halo;
  Rows<const A> w;
  const A* bias;
  int64_t B, T, C, W;
  int64_t blocks_per_sequence;
  bool wide;  // x, halo and the outputs
};

// The channels and the tokens of this thread.
template <class A>
struct Place {
  int64_t b, begin, end, c, left;
  __device__ explicit Place(const Conv<A>& conv) {
    c = (static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x) * kVec<A>;
    left = conv.C - c;
    const DivMod at(blockIdx.y, conv.blocks_per_sequence);
    b = at.quotient;
    begin = (at.remainder * kStrips + threadIdx.y) * kStrip;
    end = begin + kStrip < conv.T ? begin + kStrip : conv.T;
  }
};

// Weights, bias and the last kTaps rows of input of one thread.
template <class A, int kTaps>
struct Window {
  static constexpr int V = kVec<A>;
  const Conv<A>& conv;
  const Place<A>& place;
  Acc<A> w[kTaps][V], bias[V];
  Raw<A> x[kTaps];

  __device__ Window(const Conv<A>& conv_in, const Place<A>& place_in) : conv(conv_in), place(place_in) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const bool here = e < place.left;
      bias[e] = here ? widen(conv.bias[place.c + e]) : Acc<A>(0);
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        const int tap = j - (kTaps - static_cast<int>(conv.W));
        w[j][e] = here && tap >= 0 ? widen(conv.w[place.c + e][tap]) : Acc<A>(0);
      }
    }
#pragma unroll
    for (int j = 0; j < kTaps; ++j) x[j] = input(place.begin - kTaps + j);
  }

  // The row of token t; zeros where the convolution does not reach.
  __device__ Raw<A> input(int64_t t) const {
    const int64_t reach = conv.W - 1;
    const A* row = nullptr;
    if (t >= 0) {
      row = conv.x.at(place.b, t);
    } else if (t >= -reach && conv.halo.data != nullptr) {
      row = conv.halo.at(place.b, t + reach);
    }
    return row == nullptr ? Raw<A>{} : load(row + place.c, place.left, conv.wide);
  }

  // Takes in the row of the next token.
  __device__ void push(const Raw<A>& next) {
#pragma unroll
    for (int j = 0; j + 1 < kTaps; ++j) x[j] = x[j + 1];
    x[kTaps - 1] = next;
  }

  __device__ Acc<A> pre_activation(int e) const {
    Acc<A> sum = bias[e];
#pragma unroll
    for (int j = 0; j < kTaps; ++j) sum += w[j][e] * x[j][e];
    return sum;
  }
};

template <class A, int kTaps>
__global__ void __launch_bounds__(kColumns* kStrips) forward_kernel(Conv<A> conv, Planes<A> y) {
  const Place<A> place(conv);
  if (place.left <= 0 || place.begin >= place.end) return;
  Window<A, kTaps> window(conv, place);
#pragma unroll 4
  for (int64_t t = place.begin; t < place.end; ++t) {
    window.push(load(conv.x.at(place.b, t) + place.c, place.left, conv.wide));
    Raw<A> out;
#pragma unroll
    for (int e = 0; e < kVec<A>; ++e) {
      const Acc<A> pre = window.pre_activation(e);
      out.v[e] = narrow<A>(pre * sigmoid<A>(pre));
    }
    store(y.at(place.b, t) + place.c, out, place.left, conv.wide);
  }
}

template <class A>
struct Backward {
  Conv<A> conv;
  Planes<A> dx, dhalo;
  Planes<const A> dy;
  Acc<A>* partial;  // [blocks of tokens, W + 1, C]: taps, then the bias
};

template <class A, int kTaps>
__global__ void __launch_bounds__(kColumns* kStrips) backward_kernel(Backward<A> f) {
  constexpr int V = kVec<A>;
  __shared__ Acc<A> scratch[kStrips][kColumns * V];
  const Conv<A>& conv = f.conv;
  const Place<A> place(conv);
  Acc<A> dw[kTaps][V] = {}, db[V] = {};
  if (place.left > 0 && place.begin < place.end) {
    Window<A, kTaps> window(conv, place);
    Acc<A> dpre[kTaps][V] = {};  // of the last kTaps tokens
    for (int64_t t = place.begin; t < place.end + kTaps - 1; ++t) {
#pragma unroll
      for (int j = 0; j + 1 < kTaps; ++j) {
#pragma unroll
        for (int e = 0; e < V; ++e) dpre[j][e] = dpre[j + 1][e];
      }
      if (t < conv.T) {
        window.push(load(conv.x.at(place.b, t) + place.c, place.left, conv.wide));
        const Raw<A> dy = load(f.dy.at(place.b, t) + place.c, place.left, conv.wide);
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const Acc<A> pre = window.pre_activation(e), s = sigmoid<A>(pre);
          dpre[kTaps - 1][e] = dy[e] * s * (1 + pre * (1 - s));
        }
      } else {
#pragma unroll
        for (int e = 0; e < V; ++e) dpre[kTaps - 1][e] = 0;
      }
      if (t < place.end) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const Acc<A> d = dpre[kTaps - 1][e];
          db[e] += d;
#pragma unroll
          for (int j = 0; j < kTaps; ++j) dw[j][e] += d * window.x[j][e];
        }
      }
      // Row s feeds output t - j by tap j: all of them are known now.
      const int64_t s = t - (kTaps - 1);
      A* to = nullptr;
      if (s >= place.begin) {
        to = f.dx.at(place.b, s);
      } else if (place.begin == 0 && s + conv.W - 1 >= 0 && f.dhalo.data != nullptr) {
        to = f.dhalo.at(place.b, s + conv.W - 1);
      }
      if (to == nullptr) continue;
      Raw<A> dx;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        Acc<A> sum = 0;
#pragma unroll
        for (int j = 0; j < kTaps; ++j) sum += window.w[j][e] * dpre[kTaps - 1 - j][e];
        dx.v[e] = narrow<A>(sum);
      }
      store(to + place.c, dx, place.left, conv.wide);
    }
  }
  // The block's strips meet in shared memory, one tap at a time, and are added in order.
  for (int line = 0; line <= conv.W; ++line) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < V; ++e) {
      Acc<A> value = db[e];
#pragma unroll
      for (int j = 0; j < kTaps; ++j) value = line == j - (kTaps - conv.W) ? dw[j][e] : value;
      scratch[threadIdx.y][threadIdx.x * V + e] = value;
    }
    __syncthreads();
    Acc<A>* out = f.partial + (blockIdx.y * (conv.W + 1) + line) * conv.C;
    for (int i = threadIdx.y * kColumns + threadIdx.x; i < kColumns * V; i += kColumns * kStrips) {
      const int64_t c = static_cast<int64_t>(blockIdx.x) * kColumns * V + i;
      if (c >= conv.C) continue;
      Acc<A> sum = 0;
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) sum += scratch[strip][i];
      out[c] = sum;
    }
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
          ceil_div(x_BTC.size(1), kStrip * kStrips),
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
  return {ceil_div(conv.C, kColumns * kVec<A>), conv.B * conv.blocks_per_sequence};
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
      launch(stream(), grid_of(conv), dim3(kColumns, kStrips), 0, forward_kernel<A, kTaps>, conv, planes<A>(y_BTC));
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
        W, [&]<int kTaps>() { launch(stream(), grid, dim3(kColumns, kStrips), 0, backward_kernel<A, kTaps>, f); });
    // Two targets in lines of (W + 1) C: the taps go to dw transposed, the rest to db.
    const int64_t width = (W + 1) * C;
    add_lines<Acc<A>>(stream(), {dw_CW.data<Acc<A>>(), C, 1, dw_CW.stride(0)}, partial, grid.y, W * C, width);
    add_lines<Acc<A>>(stream(), {db_C.data<Acc<A>>(), C, C, 1}, partial + W * C, grid.y, C, width);
  });
}

}  // namespace tmamba::cuda
