// The arithmetic of one thread's channels: the convolution's taps over a window of tokens, and RoPE's angles.
#pragma once

#include "kernels/cuda/elementwise/conv_tiles.cuh"

namespace tmamba::cuda {

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

  // The row of token t < begin, from the sequence or the halo; null if no tap reaches it.
  __device__ static const A* before(const Conv<A>& conv, const Place<A, kRope>& place, int64_t t) {
    const int64_t reach = conv.W - 1;
    if (t >= 0) return conv.x.at(place.b, t);
    return t < -reach || conv.halo.data == nullptr ? nullptr : conv.halo.at(place.b, t + reach);
  }

  __device__ void advance(const StoredGroup<A>& next) {
    const Group<A> last = next.widened();
#pragma unroll
    for (int e = 0; e < kWidth<A>; ++e) {
#pragma unroll
      for (int j = 0; j < kBack; ++j) x[j][e] = x[j + 1][e];
      x[kBack][e] = last.v[e];
    }
  }

  __device__ Acc<A> pre_activation(int e) const {
    Acc<A> sum = bias[e];
#pragma unroll
    for (int j = 0; j < kTaps; ++j) sum += w[j][e] * x[j][e];
    return sum;
  }
};

// RoPE's angles of this thread's channels: the first token's in float64, then advanced by a constant step per token.
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
      const double
          frequency =  // in half turns per token, for sincospi(): shorter than sincos(), which must divide by pi
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

  __device__ Group<A> rotated(const Group<A>& x) const {
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

}  // namespace tmamba::cuda
