// Shared by the kernels of the depthwise convolution: the problem, the channels and tokens of a block, and the launch
// parameters. A block processes a strip of tokens in tiles of shared memory, which are loaded while the previous tile
// is computed; results replace the inputs in shared memory. Global memory is accessed by whole rows of neighbouring
// channels, however channels are assigned to threads. A thread owns kWidth channels and keeps the rows of its taps in
// registers. kTaps >= W: taps before the first are zero and read nothing.
//
// A thread's channels are a "group" of two halves. Without RoPE they are adjacent. With RoPE the upper half holds the
// channels that are rotated with those of the lower half, half a head further, and a block takes whole heads.
#pragma once

#include <cmath>

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

// Tokens per block: chosen so that the blocks fill the GPU a whole number of times (at_once). The upper limit keeps the
// error of angles, which are advanced token by token, small compared with bfloat16's rounding.
constexpr int64_t kShortestStrip = 64, kLongestStrip = 1024;
constexpr int kTile = 8;    // tokens of a tile, unrolled
constexpr int kStages = 2;  // tiles: one in use, the others in flight
constexpr int kMostTaps = 8;
// Channels of half a group, and of a thread.
template <class A>
constexpr int kHalf = sizeof(A) == 2 ? 2 : 1;
template <class A>
constexpr int kWidth = 2 * kHalf<A>;

template <class A>
struct Conv {
  Planes<const A> x, halo;
  Rows<const A> w;
  const A* bias;
  int64_t B, T, C, W;
  int64_t strip, strips, span, blocks;  // tokens per strip, strips per sequence; channels per block, blocks per row
  int64_t shift;                        // rotates the order of blocks per strip, to mix blocks with and without RoPE
  bool aligned16;                       // rows_aligned16() of x, halo, the outputs and their gradients
};

// RoPE applies to q and k of tokens t < prefix, in heads of `dim` channels, a multiple of 32.
template <class A>
struct Rotation {
  int64_t prefix = 0;                        // 0: no RoPE
  int64_t dim = 0, inner = 0, position = 0;  // inner: channels of all heads
  double log_theta = 0;
  Cubes<A> k_rot;          // [B, P, H, D]: the rotated keys, or their gradient, if stored separately
  bool aligned16 = false;  // k_rot
};

// Whether RoPE applies to a thread's channels; separate: plain and rotated keys are stored separately.
enum class RopeMode { none, in_place, separate };

// The channels and the tokens of this block and thread.
template <class A, bool kRope>
struct Place {
  int64_t b, begin, strip;
  int64_t first;  // channel of the block
  int64_t c;      // this thread's first channel
  int offset;     // of c from the block's first channel
  int upper;      // offset of the upper half of its channels from the lower
  int count;      // tokens of the strip
  int rotated;    // how many of these RoPE rotates: the first ones, for channels of q and k
  bool here;      // this thread has channels
  RopeMode mode;

  __device__ Place(const Conv<A>& conv, const Rotation<A>& rotation) {
    const DivMod at(blockIdx.x, conv.blocks), row(at.quotient, conv.strips);
    strip = at.quotient, first = (at.remainder + strip * conv.shift) % conv.blocks * conv.span;
    b = row.quotient, begin = row.remainder * conv.strip;
    count = static_cast<int>(begin + conv.strip < conv.T ? conv.strip : conv.T - begin);
    const int thread = static_cast<int>(threadIdx.x);
    offset = thread * kWidth<A>, upper = kHalf<A>;
    if (kRope) {
      const int dim = static_cast<int>(rotation.dim), groups = dim / kWidth<A>;
      offset = thread / groups * dim + thread % groups * kHalf<A>, upper = dim / 2;
    }
    c = first + offset;
    here = offset < conv.span && c < conv.C;
    rotated = 0, mode = RopeMode::none;
    if (!kRope || !here || c >= 2 * rotation.inner || begin >= rotation.prefix) return;
    const int64_t in_prefix = rotation.prefix - begin, most = conv.strip + kMostTaps;
    rotated = static_cast<int>(in_prefix < most ? in_prefix : most);
    mode = rotation.k_rot.data != nullptr && c >= rotation.inner ? RopeMode::separate : RopeMode::in_place;
  }

  // This thread's channel e < kWidth.
  __device__ int64_t channel(int e) const { return e < kHalf<A> ? c + e : c + upper + (e - kHalf<A>); }

  // The address of channel `of` (of q, k, v) among the rotated keys, at a row of the strip; null unless it is of k.
  __device__ A* rotated_key(const Rotation<A>& rotation, int64_t of, int row) const {
    if (rotation.k_rot.data == nullptr || of < rotation.inner || of >= 2 * rotation.inner) return nullptr;
    const DivMod head(of - rotation.inner, rotation.dim);
    return rotation.k_rot.at(b, begin + row, head.quotient) + head.remainder;
  }
};

// Resident blocks of an H200 (132 SMs), with kWarps resident warps per SM.
template <int kWarps, int kThreads>
constexpr int64_t at_once = 132 * (kWarps * kWarp / kThreads);

template <class A>
Conv<A> make_conv(const ConstTensor& x_BTC, const ConstTensor& halo_BWC, const ConstTensor& w_CW,
                  const ConstTensor& b_C, bool aligned16, int64_t span, int64_t blocks_in_all) {
  TM_CHECK(w_CW.size(1) <= kMostTaps, "conv w_CW ", w_CW.shape(), ": 1 to ", kMostTaps, " taps are supported by CUDA");
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2), blocks = ceil_div(C, span);
  const int64_t together = std::max<int64_t>(blocks_in_all / (B * blocks), 1);
  const int64_t waves = ceil_div(ceil_div(T, together), kLongestStrip);
  const int64_t strip = round_up(std::max(ceil_div(T, together * waves), kShortestStrip), kTile);
  return {planes<A>(x_BTC),
          planes<A>(halo_BWC),
          rows<A>(w_CW),
          b_C.data<A>(),
          B,
          T,
          C,
          w_CW.size(1),
          strip,
          ceil_div(T, strip),
          span,
          blocks,
          ceil_div(blocks, 3),
          aligned16};
}

template <class A, class Args>
Rotation<A> make_rotation(const Args& args, const Tensor& k_rot_BPHD) {
  if (args.prefix == 0) return {};
  const int64_t inner = args.x_BTC.size(2) / 3;
  return {args.prefix,          inner / args.heads,          inner, args.position, std::log(args.theta),
          cubes<A>(k_rot_BPHD), rows_aligned16({k_rot_BPHD})};
}

template <class A>
Grid grid_of(const Conv<A>& conv) {
  return {conv.blocks * conv.B * conv.strips};
}

constexpr int kUsualThreads = 128, kFewerThreads = 96;

// Calls f.template operator()<kTaps, kThreads, kRope>(span), where span is the channels per block. `dim`: channels of a
// rotated head, 0 without RoPE. Selects fewer threads if fewer of them are idle, as with heads of 96 channels.
template <class A, class F>
void dispatch_conv(int64_t W, int64_t dim, const F& f) {
  const auto span = [&](int threads) { return threads * kWidth<A> / std::max<int64_t>(dim, 1) * dim; };
  constexpr int64_t kUsual = kUsualThreads * kWidth<A>;
  if (dim == 0) {
    if (W == 4) return f.template operator()<4, kUsualThreads, false>(kUsual);
    return f.template operator()<kMostTaps, kUsualThreads, false>(kUsual);
  }
  if (W != 4) return f.template operator()<kMostTaps, kUsualThreads, true>(span(kUsualThreads));
  if (span(kFewerThreads) * kUsualThreads > span(kUsualThreads) * kFewerThreads) {
    return f.template operator()<4, kFewerThreads, true>(span(kFewerThreads));
  }
  f.template operator()<4, kUsualThreads, true>(span(kUsualThreads));
}

}  // namespace tmamba::cuda
