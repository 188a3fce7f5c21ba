// What the kernels of the depthwise convolution share. A block walks over a strip of tokens in tiles, which come into
// shared memory while the one before is computed; results go through the same shared memory. What passes between it and
// the GPU's memory are whole neighbouring rows, however channels are shared out among threads. A thread owns kWidth
// channels and keeps the rows that its taps reach back to in registers. kTaps >= W taps; those before the first are
// zero and read nothing.
//
// A thread's channels are a "group" of two halves. Without RoPE they lie side by side. With RoPE the upper half holds
// the channels that those of the lower half turn with, half a head behind, and a block takes whole heads.
#pragma once

#include <cmath>

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

// Tokens per block: as many as share the work out among the blocks that run together (at_once), or as share it out
// twice, and so on; but no more than keep an angle that is turned token by token exact to a small part of bfloat16's
// rounding.
constexpr int64_t kShortestStrip = 64, kLongestStrip = 1024;
constexpr int kTile = 8;    // tokens in shared memory at a time, in straight code
constexpr int kStages = 2;  // tiles: one in use, the others on their way
constexpr int kMostTaps = 8;
// Channels: of half a group, of a thread.
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
  int64_t strip, strips, span, blocks;  // tokens of a strip, strips of a sequence; channels of a block, blocks across
  int64_t shift;  // of the order of blocks from strip to strip, for channels that turn and others to run together
  bool wide;      // x, halo, the outputs and their gradients
};

// Where RoPE applies: q and k of tokens t < prefix, of heads of `dim` channels, a multiple of 32.
template <class A>
struct Rotation {
  int64_t prefix = 0;                        // 0: nowhere
  int64_t dim = 0, inner = 0, position = 0;  // inner: channels of all heads
  double log_theta = 0;
  Cubes<A> k_rot;     // [B, P, H, D]: the rotated keys, or their gradient, where they lie apart
  bool wide = false;  // k_rot
};

// What becomes of a thread's tokens: nothing, or they turn; apart: of keys the plain and the rotated form lie apart.
enum class Turn { none, in_place, apart };

// The channels and the tokens of this block and thread.
template <class A, bool kRope>
struct Place {
  int64_t b, begin, strip;
  int64_t first;  // channel of the block
  int64_t c;      // this thread's first channel
  int offset;     // of it from the block's first
  int upper;      // the second half of its channels begins so far behind
  int count;      // tokens of the strip
  int turned;     // of these the first ones, where this thread has channels of q or k; else 0
  bool here;      // this thread has channels
  Turn turn;

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
    turned = 0, turn = Turn::none;
    if (!kRope || !here || c >= 2 * rotation.inner || begin >= rotation.prefix) return;
    const int64_t in_prefix = rotation.prefix - begin, most = conv.strip + kMostTaps;
    turned = static_cast<int>(in_prefix < most ? in_prefix : most);
    turn = rotation.k_rot.data != nullptr && c >= rotation.inner ? Turn::apart : Turn::in_place;
  }

  // This thread's channel e < kWidth.
  __device__ int64_t channel(int e) const { return e < kHalf<A> ? c + e : c + upper + (e - kHalf<A>); }

  // Channel `of` of q, k and v among the rotated keys, at the strip's row; of another than k, null.
  __device__ A* rotated_key(const Rotation<A>& rotation, int64_t of, int row) const {
    if (rotation.k_rot.data == nullptr || of < rotation.inner || of >= 2 * rotation.inner) return nullptr;
    const DivMod head(of - rotation.inner, rotation.dim);
    return rotation.k_rot.at(b, begin + row, head.quotient) + head.remainder;
  }
};

// A thread's channels.
template <class A>
struct Group {
  Acc<A> v[kWidth<A>];
};

// As they are stored: of bfloat16 each half in one register.
template <class A>
struct StoredGroup {
  A lower, upper;
  __device__ Group<A> widened() const { return {lower, upper}; }
  __device__ static StoredGroup rounded(const Group<A>& x) { return {x.v[0], x.v[1]}; }
};
template <>
struct alignas(8) StoredGroup<bf16_t> {
  uint32_t lower, upper;
  __device__ Group<bf16_t> widened() const {
    return {low_bf16(lower), high_bf16(lower), low_bf16(upper), high_bf16(upper)};
  }
  __device__ static StoredGroup rounded(const Group<bf16_t>& x) {
    return {pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3])};
  }
};

// Stores the two halves `upper` channels apart, of which `left` channels from the first on are there. `whole`: all are,
// and the halves are aligned.
template <class A>
__device__ void store_group(A* to, int upper, const StoredGroup<A>& x, int64_t left, bool whole) {
  if (whole) {
    using Half = decltype(StoredGroup<A>::lower);
    *reinterpret_cast<Half*>(to) = x.lower;
    *reinterpret_cast<Half*>(to + upper) = x.upper;
    return;
  }
  const A* const from = reinterpret_cast<const A*>(&x);
#pragma unroll
  for (int e = 0; e < kWidth<A>; ++e) {
    const int at = e < kHalf<A> ? e : upper + (e - kHalf<A>);
    if (at < left) to[at] = from[e];
  }
}

// One tensor's way through shared memory: this thread's share of the copies, and its own channels.
template <class A, int kThreads, bool kRope>
class Tiles {
 public:
  static constexpr int kChannels = kThreads * kWidth<A>;
  static constexpr size_t kBytes = sizeof(A) * kStages * kTile * kChannels;

  // This thread copies kVec<A> channels from the block's column() on, of every kRows-th row from row() on.
  static constexpr int kPieces = kChannels / kVec<A>, kRows = kThreads / kPieces, kPasses = kTile / kRows;
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kPieces; }
  __device__ static int column() { return static_cast<int>(threadIdx.x) % kPieces * kVec<A>; }
  // How many channels from there on are the block's.
  __device__ static int64_t left(const Conv<A>& conv, const Place<A, kRope>& place) {
    const int64_t in_tensor = conv.C - place.first;
    return (in_tensor < conv.span ? in_tensor : conv.span) - column();
  }

  // `from`: what this thread copies of the strip's first tile.
  __device__ Tiles(void* shared, int tensor, const Place<A, kRope>& place, const A* from)
      : tiles_(reinterpret_cast<A*>(shared) + tensor * kStages * kTile * kChannels),
        own_(tiles_ + place.offset),
        upper_(place.upper),
        from_(from) {}

  // Starts to load the next tile into `stage`: `rows` of its tokens are there, `stride` apart, the others become zeros.
  // `left` as left() says; `wide`: rows are whole numbers of pieces, aligned.
  __device__ void start(int stage, int rows, int64_t stride, int64_t left, bool wide) {
    A* const to = piece(stage);
    const A* from = from_;
    from_ += kTile * stride;
    if (left <= 0) return;
    if (wide && left >= kVec<A> && rows >= kTile) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass, from += kRows * stride) {
        copy_async_16(to + pass * kRows * kChannels, from, true);
      }
    } else {
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass, from += kRows * stride) {
        const bool here = row() + pass * kRows < rows;
        *reinterpret_cast<Raw<A>*>(to + pass * kRows * kChannels) = load(from, here ? left : 0, wide);
      }
    }
  }

  // Stores rows [begin, end) of the tile in `stage`; this thread's first row goes to `to`. The pieces are those that
  // start() fills, so a thread may do this and then start() without a barrier.
  __device__ void flush(int stage, A* to, int64_t stride, int begin, int end, int64_t left, bool wide) const {
    if (left <= 0) return;
    const A* const from = piece(stage);
    if (wide && left >= kVec<A> && begin <= 0 && end >= kTile) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass, to += kRows * stride) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from + pass * kRows * kChannels);
      }
    } else {
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass, to += kRows * stride) {
        const int at = row() + pass * kRows;
        if (at < begin || at >= end) continue;
        store(to, *reinterpret_cast<const Raw<A>*>(from + pass * kRows * kChannels), left, wide);
      }
    }
  }

  // This thread's channels of row `row`.
  __device__ StoredGroup<A> at(int stage, int row) const {
    const A* const from = own_ + (stage * kTile + row) * kChannels;
    if constexpr (kRope) {
      using Half = decltype(StoredGroup<A>::lower);
      return {*reinterpret_cast<const Half*>(from), *reinterpret_cast<const Half*>(from + upper_)};
    } else {
      return *reinterpret_cast<const StoredGroup<A>*>(from);
    }
  }
  // Results take the place of numbers that have been used.
  __device__ void put(int stage, int row, const StoredGroup<A>& x) {
    A* const to = own_ + (stage * kTile + row) * kChannels;
    if constexpr (kRope) {
      store_group(to, upper_, x, 0, true);
    } else {
      *reinterpret_cast<StoredGroup<A>*>(to) = x;
    }
  }

 private:
  __device__ A* piece(int stage) const { return tiles_ + (stage * kTile + row()) * kChannels + column(); }

  A *tiles_, *own_;
  int upper_;
  const A* from_;
};

// Weights, bias and the last kTaps inputs.
template <class A, int kTaps, bool kRope>
struct Window {
  static constexpr int kBack = kTaps - 1;
  Acc<A> w[kTaps][kWidth<A>], bias[kWidth<A>];
  Acc<A> x[kTaps][kWidth<A>];  // of tokens t - kBack .. t

  __device__ void begin(const Conv<A>& conv, const Place<A, kRope>& place) {
#pragma unroll
    for (int e = 0; e < kWidth<A>; ++e) {
      const int64_t c = place.channel(e);
      const bool here = place.here && c < conv.C;
      bias[e] = here ? widen(conv.bias[c]) : Acc<A>(0);
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        const int tap = j - (kTaps - static_cast<int>(conv.W));
        w[j][e] = here && tap >= 0 ? widen(conv.w[c][tap]) : Acc<A>(0);
      }
    }
    // All loads before the first use.
    A rows[kBack][kWidth<A>];
#pragma unroll
    for (int j = 0; j < kBack; ++j) {
      const A* const row = before(conv, place, place.begin - kBack + j);
#pragma unroll
      for (int e = 0; e < kWidth<A>; ++e) {
        const int64_t c = place.channel(e);
        rows[j][e] = row != nullptr && place.here && c < conv.C ? row[c] : A{};
      }
    }
#pragma unroll
    for (int j = 0; j < kBack; ++j) {
#pragma unroll
      for (int e = 0; e < kWidth<A>; ++e) x[j + 1][e] = widen(rows[j][e]);
    }
  }

  // The row of token t < begin; null where the convolution does not reach.
  __device__ static const A* before(const Conv<A>& conv, const Place<A, kRope>& place, int64_t t) {
    const int64_t reach = conv.W - 1;
    if (t >= 0) return conv.x.at(place.b, t);
    return t < -reach || conv.halo.data == nullptr ? nullptr : conv.halo.at(place.b, t + reach);
  }

  __device__ void advance(const StoredGroup<A>& next) {
    const Group<A> wide = next.widened();
#pragma unroll
    for (int e = 0; e < kWidth<A>; ++e) {
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
template <class A>
struct Angles {
  using T = std::conditional_t<std::is_same_v<A, bf16_t>, float, double>;
  T cosine[kHalf<A>], sine[kHalf<A>], step_cosine[kHalf<A>], step_sine[kHalf<A>];

  // c: the first channel. direction: 1 rotates, -1 rotates back.
  __device__ void begin(const Rotation<A>& rotation, int64_t c, int64_t token, int direction) {
    const int64_t in_head = DivMod(c, rotation.dim).remainder;
#pragma unroll
    for (int e = 0; e < kHalf<A>; ++e) {
      constexpr double kPi = 3.14159265358979323846;
      const double frequency =  // half turns a token: sincospi() is shorter than sincos(), which must divide by pi
          exp(-static_cast<double>(2 * (in_head + e)) / static_cast<double>(rotation.dim) * rotation.log_theta) / kPi;
      double s, co, step_s, step_c;
      sincospi(static_cast<double>(rotation.position + token) * frequency, &s, &co);
      sincospi(frequency, &step_s, &step_c);
      cosine[e] = static_cast<T>(co), sine[e] = static_cast<T>(direction * s);
      step_cosine[e] = static_cast<T>(step_c), step_sine[e] = static_cast<T>(direction * step_s);
    }
  }

  __device__ void advance() {
#pragma unroll
    for (int e = 0; e < kHalf<A>; ++e) {
      const T c = cosine[e], s = sine[e];
      cosine[e] = c * step_cosine[e] - s * step_sine[e];
      sine[e] = s * step_cosine[e] + c * step_sine[e];
    }
  }

  __device__ Group<A> turned(const Group<A>& x) const {
    Group<A> out;
#pragma unroll
    for (int e = 0; e < kHalf<A>; ++e) {
      const Acc<A> c = static_cast<Acc<A>>(cosine[e]), s = static_cast<Acc<A>>(sine[e]);
      const Acc<A> lower = x.v[e], upper = x.v[e + kHalf<A>];
      out.v[e] = lower * c - upper * s;
      out.v[e + kHalf<A>] = upper * c + lower * s;
    }
    return out;
  }
};

// Calls f(stage, first row) for each tile of the rows [0, rows) of the strip, with start(stage, first row) issued
// kStages - 1 tiles ahead, begin() once behind the first of these, and finish(stage, first row) once all threads are
// done with f for that tile.
template <class Start, class Begin, class F, class Finish>
__device__ void for_each_tile(int rows, const Start& start, const Begin& begin, const F& f, const Finish& finish) {
#pragma unroll
  for (int ahead = 0; ahead < kStages - 1; ++ahead) {
    if (ahead * kTile < rows) start(ahead, ahead * kTile);
    commit_copies();
  }
  begin();
  int stage = 0, behind = kStages - 1;  // the stage in use, and the one before it
  for (int row = 0; row < rows; row += kTile) {
    wait_copies<kStages - 2>();
    __syncthreads();  // the tile is there, for all; and all are done with the one before
    if (row > 0) finish(behind, row - kTile);
    if (row + (kStages - 1) * kTile < rows) start(behind, row + (kStages - 1) * kTile);
    commit_copies();
    f(stage, row);
    behind = stage;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  __syncthreads();
  finish(behind, (rows - 1) / kTile * kTile);
}

// Blocks that run together on an H200, whose multiprocessors have 132 x kWarps warps of such a kernel.
template <int kWarps, int kThreads>
constexpr int64_t at_once = 132 * (kWarps * kWarp / kThreads);

template <class A>
Conv<A> make_conv(const ConstTensor& x_BTC, const ConstTensor& halo_BWC, const ConstTensor& w_CW,
                  const ConstTensor& b_C, bool wide, int64_t span, int64_t blocks_in_all) {
  TM_CHECK(w_CW.size(1) <= kMostTaps, "conv w_CW ", w_CW.shape(), ": 1 to ", kMostTaps,
           " taps are supported on the GPU");
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
          wide};
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

constexpr int kUsualThreads = 128, kFewerThreads = 96;

// Calls f.template operator()<kTaps, kThreads, kRope>(span) with the channels that a block takes; `dim`: of a head that
// turns, else 0. Fewer threads where they waste fewer: three heads of 32 or 96 channels, say.
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
