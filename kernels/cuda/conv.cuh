// What the kernels of the depthwise convolution share. A block walks over a strip of tokens in tiles, which come into
// shared memory while the ones before are computed; a thread owns kWidth neighbouring channels and keeps the rows that
// its taps reach back to in registers. kTaps >= W taps; those before the first are zero and read nothing.
//
// With RoPE the channels i and i + D/2 of a head belong to lanes eight apart of one warp: a block takes "units" of 16
// pairs, 16 channels of the lower half of a head and the 16 that they turn with, in this order in shared memory.
#pragma once

#include <cmath>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/views.h"

namespace tmamba::cuda {

constexpr int kUnrolled = 8;  // tokens of a tile in straight code
// Tokens per block: as many as share the work out among the blocks that an H200 runs together, or twice these; but no
// more than keep an angle that is turned token by token exact to a small part of bfloat16's rounding.
constexpr int64_t kShortestStrip = 64, kLongestStrip = 1024;
constexpr int kTile = 16;          // tokens in shared memory at a time
constexpr int kStages = 2;         // tiles: one in use, the others on their way
constexpr int kConvThreads = 128;  // side by side across channels
constexpr int kWidth = 2;          // channels per thread
constexpr int kChannels = kConvThreads * kWidth;
constexpr int kMostTaps = 8;
constexpr int kUnitPairs = 16;
constexpr int kUnit = 2 * kUnitPairs;          // channels
constexpr int kPartner = kUnitPairs / kWidth;  // lanes apart

template <class A>
struct Conv {
  Planes<const A> x, halo;
  Rows<const A> w;
  const A* bias;
  int64_t B, T, C, W;
  int64_t strip, strips, blocks;  // tokens of a strip, strips of a sequence; blocks across the channels
  bool wide;                      // x, halo, the outputs and their gradients
};

// Where RoPE applies: q and k of tokens t < prefix, of heads of `dim` channels, a multiple of kUnit.
template <class A>
struct Rotation {
  int64_t prefix = 0;                        // 0: nowhere, and the channels lie as they come
  int64_t dim = 0, inner = 0, position = 0;  // inner: channels of all heads
  double log_theta = 0;
  Cubes<A> k_rot;     // [B, P, H, D]: the rotated keys, or their gradient, where they lie apart
  bool wide = false;  // k_rot
};

// What becomes of a tile's tokens: nothing, or they turn; apart: of keys the plain and the rotated form lie apart.
enum class Turn { none, in_place, apart };

// The channels and the tokens of this block and thread.
template <class A>
struct Place {
  int64_t b, begin, strip, slot, c, left;  // slot: of the block's first channel in the order in which blocks take them
  int count;                               // tokens of the strip
  int turned;                              // of these the first ones, where the block has channels of q or k; else 0
  int which;                               // this thread's channels: 0, 1, 2 of q, k or v
  bool lower;                              // and in the lower half of their head

  __device__ Place(const Conv<A>& conv, const Rotation<A>& rotation) {
    const DivMod at(blockIdx.x, conv.blocks), row(at.quotient, conv.strips);
    strip = at.quotient, slot = at.remainder * kChannels;
    b = row.quotient, begin = row.remainder * conv.strip;
    count = static_cast<int>(begin + conv.strip < conv.T ? conv.strip : conv.T - begin);
    c = channel(conv, rotation, threadIdx.x * kWidth);
    left = conv.C - c;
    lower = threadIdx.x % kUnitPairs < kPartner;
    which = rotation.prefix == 0 ? 2 : static_cast<int>(DivMod(c, rotation.inner).quotient);
    const int64_t in_prefix = slot < 2 * rotation.inner ? rotation.prefix - begin : 0;
    const int64_t most = conv.strip + kMostTaps;
    turned = static_cast<int>(in_prefix < 0 ? 0 : in_prefix < most ? in_prefix : most);
  }

  // The channel at `offset` from the block's first slot; C or more beyond the last.
  __device__ int64_t channel(const Conv<A>& conv, const Rotation<A>& rotation, int64_t offset) const {
    if (rotation.prefix == 0 || slot + offset >= conv.C) return slot + offset;
    const DivMod unit(slot + offset, kUnit), head(unit.quotient, rotation.dim / kUnit);
    const int64_t in = unit.remainder, upper = in / kUnitPairs;
    return head.quotient * rotation.dim + upper * (rotation.dim / 2) + head.remainder * kUnitPairs + in % kUnitPairs;
  }

  // Whether some of the block's channels are keys whose rotated form lies apart.
  __device__ bool keys_apart(const Rotation<A>& rotation) const {
    return rotation.k_rot.data != nullptr && slot + kChannels > rotation.inner && slot < 2 * rotation.inner;
  }

  // Channel c of q, k and v among the rotated keys at the strip's row; of another than k, nothing that may be read.
  __device__ A* rotated_key(const Rotation<A>& rotation, int64_t channel_of_all, int row) const {
    if (channel_of_all < rotation.inner || channel_of_all >= 2 * rotation.inner) return nullptr;
    const DivMod head(channel_of_all - rotation.inner, rotation.dim);
    return rotation.k_rot.at(b, begin + row, head.quotient) + head.remainder;
  }
};

// Two neighbouring channels.
template <class A>
struct Pair {
  Acc<A> v[kWidth];
};

// As they are stored: of bfloat16 both in one register.
template <class A>
struct StoredPair {
  A v[kWidth];
  __device__ Pair<A> widened() const { return {widen(v[0]), widen(v[1])}; }
  // Those of the lane whose channels these turn with.
  __device__ StoredPair partner() const {
    return {__shfl_xor_sync(0xFFFFFFFFu, v[0], kPartner), __shfl_xor_sync(0xFFFFFFFFu, v[1], kPartner)};
  }
};
template <>
struct StoredPair<bf16_t> {
  uint32_t v;
  __device__ Pair<bf16_t> widened() const { return {low_bf16(v), high_bf16(v)}; }
  __device__ StoredPair partner() const { return {__shfl_xor_sync(0xFFFFFFFFu, v, kPartner)}; }
};
template <class A>
__device__ StoredPair<A> rounded(const Pair<A>& x) {
  if constexpr (std::is_same_v<A, bf16_t>) {
    return {pack_bf16(x.v[0], x.v[1])};
  } else {
    return {x.v[0], x.v[1]};
  }
}

// `both`: both channels are there, and aligned.
template <class A>
__device__ void store_pair(A* to, const StoredPair<A>& x, int64_t left, bool both) {
  if (both) {
    *reinterpret_cast<StoredPair<A>*>(to) = x;
    return;
  }
  const A* const from = reinterpret_cast<const A*>(&x);
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    if (e < left) to[e] = from[e];
  }
}

// One tensor's way through shared memory: this thread's share of the copies, and its own channels.
template <class A>
class Tiles {
 public:
  static constexpr size_t kBytes = sizeof(A) * kStages * kTile * kChannels;

  // This thread copies kVec<A> channels from the block's slot `column` on, of every kRows-th row from `row` on.
  static constexpr int kPieces = kChannels / kVec<A>, kRows = kConvThreads / kPieces;
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kPieces; }
  __device__ static int column() { return static_cast<int>(threadIdx.x) % kPieces * kVec<A>; }

  // `from`: what this thread copies of the strip's first tile.
  __device__ Tiles(void* shared, int tensor, const A* from)
      : tiles_(reinterpret_cast<A*>(shared) + tensor * kStages * kTile * kChannels), from_(from) {}

  // Starts to load the next tile into `stage`: `rows` of its tokens are there, `stride` apart, and `left` channels from
  // this thread's first on; the others become zeros. `wide`: rows are whole numbers of pieces, aligned.
  __device__ void start(int stage, int rows, int64_t stride, int64_t left, bool wide) {
    A* const to = tiles_ + (stage * kTile + row()) * kChannels + column();
    const A* from = from_;
    const bool pieces = wide && left >= kVec<A>;
    if (pieces && rows >= kTile) {
#pragma unroll
      for (int pass = 0; pass < kTile / kRows; ++pass, from += kRows * stride) {
        copy_async_16(to + pass * kRows * kChannels, from, true);
      }
    } else {
#pragma unroll 1
      for (int pass = 0; pass < kTile / kRows; ++pass, from += kRows * stride) {
        const bool here = row() + pass * kRows < rows;
        *reinterpret_cast<Raw<A>*>(to + pass * kRows * kChannels) = load(from, here ? left : 0, pieces);
      }
    }
    from_ += kTile * stride;
  }

  // This thread's channels of row `row`.
  __device__ StoredPair<A> at(int stage, int row) const {
    return *reinterpret_cast<const StoredPair<A>*>(tiles_ + (stage * kTile + row) * kChannels + threadIdx.x * kWidth);
  }

 private:
  A* tiles_;
  const A* from_;
};

// Weights, bias and the last kTaps inputs.
template <class A, int kTaps>
struct Window {
  static constexpr int kBack = kTaps - 1;
  Acc<A> w[kTaps][kWidth], bias[kWidth];
  Acc<A> x[kTaps][kWidth];  // of tokens t - kBack .. t

  __device__ void begin(const Conv<A>& conv, const Place<A>& place) {
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
      for (int j = 0; j < kBack; ++j) x[j + 1][e] = here ? before(conv, place, place.begin - kBack + j, e) : 0;
    }
  }

  // Of token t < begin; zeros where the convolution does not reach.
  __device__ static Acc<A> before(const Conv<A>& conv, const Place<A>& place, int64_t t, int e) {
    const int64_t reach = conv.W - 1;
    if (t >= 0) return widen(conv.x.at(place.b, t)[place.c + e]);
    if (t < -reach || conv.halo.data == nullptr) return 0;
    return widen(conv.halo.at(place.b, t + reach)[place.c + e]);
  }

  __device__ void advance(const StoredPair<A>& next) {
    const Pair<A> wide = next.widened();
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
#pragma unroll
      for (int j = 0; j < kBack; ++j) x[j][e] = x[j + 1][e];
      x[kBack][e] = wide.v[e];
    }
  }

  __device__ Acc<A> pre_activation(int e) const {
    Acc<A> sum = bias[e];
#pragma unroll
    for (int j = 0; j < kTaps; ++j) sum += w[j][e] * x[j][e];
    return sum;
  }
};

// The angles of this thread's channels, token by token: a first one in float64, then turned by the same step each time.
// Sines carry the sign with which the partner's number enters. Where nothing turns, the angle stays zero.
template <class A>
struct Angles {
  using T = std::conditional_t<std::is_same_v<A, bf16_t>, float, double>;
  T cosine[kWidth], sine[kWidth], step_cosine[kWidth], step_sine[kWidth];

  // direction: 1 rotates, -1 rotates back. All lanes of a warp take part: of a pair of lanes each finds half.
  __device__ void begin(const Rotation<A>& rotation, const Place<A>& place, int direction) {
    const int64_t in_head = DivMod(place.c, rotation.dim / 2).remainder, own = place.lower ? 0 : 1;
    const double frequency =
        exp(-static_cast<double>(2 * (in_head + own)) / static_cast<double>(rotation.dim) * rotation.log_theta);
    double s, c, step_s, step_c;
    sincos(static_cast<double>(rotation.position + place.begin) * frequency, &s, &c);
    sincos(frequency, &step_s, &step_c);
    const T sign = static_cast<T>(place.lower ? -direction : direction);
    const T mine[4] = {static_cast<T>(c), static_cast<T>(s), static_cast<T>(step_c), static_cast<T>(step_s)};
    const bool turns = place.which < 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T other = __shfl_xor_sync(0xFFFFFFFFu, mine[i], kPartner);
      T(&to)[kWidth] = i == 0 ? cosine : i == 1 ? sine : i == 2 ? step_cosine : step_sine;
      const T still = i % 2 == 0 ? T(1) : T(0), factor = i % 2 == 0 ? T(1) : sign;
      to[0] = turns ? factor * (place.lower ? mine[i] : other) : still;
      to[1] = turns ? factor * (place.lower ? other : mine[i]) : still;
    }
  }

  __device__ void advance() {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const T c = cosine[e], s = sine[e];
      cosine[e] = c * step_cosine[e] - s * step_sine[e];
      sine[e] = s * step_cosine[e] + c * step_sine[e];
    }
  }

  __device__ Pair<A> turned(const Pair<A>& own, const Pair<A>& partner) const {
    Pair<A> out;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      out.v[e] = own.v[e] * static_cast<Acc<A>>(cosine[e]) + partner.v[e] * static_cast<Acc<A>>(sine[e]);
    }
    return out;
  }
};

// Calls f(stage, first row) for each tile of the rows [0, rows) of the strip, with start(stage, first row) issued
// kStages - 1 tiles ahead, and begin() once behind the first of these.
template <class Start, class Begin, class F>
__device__ void for_each_tile(int rows, const Start& start, const Begin& begin, const F& f) {
#pragma unroll
  for (int ahead = 0; ahead < kStages - 1; ++ahead) {
    if (ahead * kTile < rows) start(ahead, ahead * kTile);
    commit_copies();
  }
  begin();
  int stage = 0, behind = kStages - 1;  // the stage in use, and the one before it, which is free again
  for (int row = 0; row < rows; row += kTile) {
    wait_copies<kStages - 2>();
    __syncthreads();  // the tile is there, for all; and all are done with the one before
    if (row + (kStages - 1) * kTile < rows) start(behind, row + (kStages - 1) * kTile);
    commit_copies();
    f(stage, row);
    behind = stage;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
}

template <class A>
Conv<A> make_conv(const ConstTensor& x_BTC, const ConstTensor& halo_BWC, const ConstTensor& w_CW,
                  const ConstTensor& b_C, bool wide, int64_t blocks_in_all) {
  TM_CHECK(w_CW.size(1) <= kMostTaps, "conv w_CW ", w_CW.shape(), ": 1 to ", kMostTaps,
           " taps are supported on the GPU");
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), blocks = ceil_div(x_BTC.size(2), kChannels);
  const int64_t even = ceil_div(T, std::max<int64_t>(blocks_in_all / (B * blocks), 1));
  const int64_t strip = round_up(std::clamp(even, kShortestStrip, kLongestStrip), kTile);
  return {planes<A>(x_BTC), planes<A>(halo_BWC), rows<A>(w_CW), b_C.data<A>(),      B,      T,
          x_BTC.size(2),    w_CW.size(1),        strip,         ceil_div(T, strip), blocks, wide};
}

template <class A, class Args>
Rotation<A> make_rotation(const Args& args, const Tensor& k_rot_BPHD) {
  if (args.prefix == 0) return {};
  const int64_t inner = args.x_BTC.size(2) / 3;
  return {args.prefix,          inner / args.heads,     inner, args.position, std::log(args.theta),
          cubes<A>(k_rot_BPHD), wide_rows({k_rot_BPHD})};
}

template <class A>
Grid grid_of(const Conv<A>& conv) {
  return {conv.blocks * conv.B * conv.strips};
}

// Calls f.template operator()<kTaps>().
template <class F>
void dispatch_taps(int64_t W, const F& f) {
  if (W == 4) return f.template operator()<4>();
  f.template operator()<kMostTaps>();
}

}  // namespace tmamba::cuda
