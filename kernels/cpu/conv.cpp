// Depthwise causal convolution and SiLU. A task owns some tokens and some channels of one sequence; the rows before
// its first token come from x or, before the sequence, from the halo (or are zeros).
#include <array>

#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/partial_sums.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/ops/conv_rope.h"

namespace tmamba {

namespace {

constexpr int64_t kTokens = 64;
constexpr int64_t kChannels = 256;

// Rows that one pass over the channels multiplies and adds.
constexpr int64_t kTerms = 4;

// Products of pairs of rows. Each pass takes up to kTerms pairs; missing ones are rows of zeros.
template <class A>
class ProductSum {
 public:
  // out, of `count` elements, starts as `start` (which may be out itself).
  ProductSum(A* out, const A* start, const A* zeros, int64_t count)
      : out_(out), start_(start), zeros_(zeros), count_(count) {}
  ~ProductSum() {
    if (terms_ > 0 || start_ != out_) pass();
  }
  ProductSum(const ProductSum&) = delete;
  ProductSum& operator=(const ProductSum&) = delete;

  void add(const A* a, const A* b) {
    a_[terms_] = a, b_[terms_] = b;
    if (++terms_ == kTerms) pass();
  }

 private:
  void pass() {
    while (terms_ < kTerms) a_[terms_] = zeros_, b_[terms_] = zeros_, ++terms_;
    multiply_add(out_, start_, a_[0], b_[0], a_[1], b_[1], a_[2], b_[2], a_[3], b_[3], count_);
    start_ = out_, terms_ = 0;
  }

  static void multiply_add(A* out, const A* start, const A* a0, const A* b0, const A* a1, const A* b1, const A* a2,
                           const A* b2, const A* a3, const A* b3, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      out[i] = start[i] + ((a0[i] * b0[i] + a1[i] * b1[i]) + (a2[i] * b2[i] + a3[i] * b3[i]));
    }
  }

  A* out_;
  const A* start_;
  const A* zeros_;
  int64_t count_, terms_ = 0;
  std::array<const A*, kTerms> a_, b_;
};

template <class A>
struct Conv {
  int64_t B, T, C, W;
  Planes<const A> x, halo;
  const A* w_WC;  // the taps, transposed
  const A* bias;
  const A* zeros;  // kChannels of them
  const A* ones;

  // The input row of token t >= -(W-1), channels from c on.
  const A* input(int64_t b, int64_t t, int64_t c) const {
    if (t >= 0) return x.at(b, t) + c;
    return halo.data == nullptr ? zeros : halo.at(b, t + W - 1) + c;
  }

  // out = bias + sum_j w_j x_{t-(W-1)+j} for `count` channels from c on.
  void pre_activation(A* out, int64_t b, int64_t t, int64_t c, int64_t count) const {
    ProductSum<A> sum(out, bias + c, zeros, count);
    for (int64_t j = 0; j < W; ++j) sum.add(w_WC + j * C + c, input(b, t - (W - 1) + j, c));
  }
};

template <class A>
A* filled(ScratchFrame& frame, int64_t count, A value) {
  A* out = frame.take<A>(count);
  std::fill_n(out, count, value);
  return out;
}

template <class A>
Conv<A> make_conv(ScratchFrame& frame, const ConstTensor& x_BTC, const ConstTensor& halo_BWC, const ConstTensor& w_CW,
                  const ConstTensor& b_C) {
  Conv<A> conv{.B = x_BTC.size(0),
               .T = x_BTC.size(1),
               .C = x_BTC.size(2),
               .W = w_CW.size(1),
               .x = planes<A>(x_BTC),
               .halo = planes<A>(halo_BWC),
               .w_WC = nullptr,
               .bias = b_C.data<A>(),
               .zeros = filled(frame, kChannels, A(0)),
               .ones = filled(frame, kChannels, A(1))};
  A* w_WC = frame.take<A>(conv.W * conv.C);
  const auto w = rows<A>(w_CW);
  for (int64_t c = 0; c < conv.C; ++c) {
    for (int64_t j = 0; j < conv.W; ++j) w_WC[j * conv.C + c] = w[c][j];
  }
  conv.w_WC = w_WC;
  return conv;
}

template <class A>
struct ConvGradients {
  Planes<A> dx, dhalo;
  Planes<const A> dy;
};

// Gradient of the pre-activation of one row: dy SiLU'(pre).
template <class A>
void pre_gradient(A* dpre, const A* dy, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const A s = sigmoid(dpre[i]);
    dpre[i] = dy[i] * s * (A(1) + dpre[i] * (A(1) - s));
  }
}

// The tokens [begin, end) of one sequence and `count` channels from c on: dx of these tokens (dhalo, where they are
// the first), and their part of dw and db (`lines`: one per tap, then the bias). dpre: (end - begin + W - 1) x count
// of scratch.
template <class A>
void backward_block(const Conv<A>& conv, const ConvGradients<A>& d, int64_t b, int64_t begin, int64_t end, int64_t c,
                    int64_t count, A* dpre, A* lines, int64_t line_stride) {
  const int64_t W = conv.W;
  const int64_t last = std::min(end + W - 1, conv.T);  // dx of the last tokens needs dpre of the next W-1
  for (int64_t t = begin; t < last; ++t) {
    A* row = dpre + (t - begin) * count;
    conv.pre_activation(row, b, t, c, count);
    pre_gradient(row, d.dy.at(b, t) + c, count);
  }
  for (int64_t j = 0; j <= W; ++j) {
    A* line = lines + j * line_stride;
    ProductSum<A> sum(line, line, conv.zeros, count);
    for (int64_t t = begin; t < end; ++t) {
      sum.add(dpre + (t - begin) * count, j == W ? conv.ones : conv.input(b, t - (W - 1) + j, c));
    }
  }
  // Input row t feeds outputs t .. t + W - 1, by tap W - 1 first.
  const auto input_gradient = [&](A* out, int64_t t) {
    ProductSum<A> sum(out, conv.zeros, conv.zeros, count);
    for (int64_t to = std::max<int64_t>(t, 0); to < std::min(t + W, conv.T); ++to) {
      sum.add(conv.w_WC + (W - 1 - (to - t)) * conv.C + c, dpre + (to - begin) * count);
    }
  };
  for (int64_t t = begin; t < end; ++t) input_gradient(d.dx.at(b, t) + c, t);
  if (begin == 0 && d.dhalo.data != nullptr) {
    for (int64_t t = -(W - 1); t < 0; ++t) input_gradient(d.dhalo.at(b, t + W - 1) + c, t);
  }
}

}  // namespace

void CpuOps::conv_silu_forward(const ConvSiluForward& args) {
  const int64_t B = args.x_BTC.size(0), T = args.x_BTC.size(1), C = args.x_BTC.size(2);
  if (B * T * C == 0) return;
  check_args(Device::cpu, args);
  dispatch_float(args.x_BTC.dtype(), [&]<class A>() {
    ScratchFrame frame;
    const Conv<A> conv = make_conv<A>(frame, args.x_BTC, args.halo_BWC, args.w_CW, args.b_C);
    const auto y = planes<A>(args.y_BTC);
    const int64_t blocks = ceil_div(T, kTokens), slices = ceil_div(C, kChannels);
    parallel_tasks(B * blocks * slices, [&](int64_t task) {
      const int64_t c = task % slices * kChannels, count = std::min(kChannels, C - c);
      const int64_t b = task / slices / blocks, begin = task / slices % blocks * kTokens;
      for (int64_t t = begin; t < std::min(begin + kTokens, T); ++t) {
        A* out = y.at(b, t) + c;
        conv.pre_activation(out, b, t, c, count);
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) out[i] *= sigmoid(out[i]);
      }
    });
  });
}

void CpuOps::conv_silu_backward(const ConvSiluBackward& args) {
  const int64_t B = args.x_BTC.size(0), T = args.x_BTC.size(1), C = args.x_BTC.size(2), W = args.w_CW.size(1);
  if (!args.dhalo_BWC.empty() && T == 0) fill({args.dhalo_BWC, 0});
  if (B * T * C == 0) return;
  check_args(Device::cpu, args);
  dispatch_float(args.x_BTC.dtype(), [&]<class A>() {
    ScratchFrame frame;
    const Conv<A> conv = make_conv<A>(frame, args.x_BTC, args.halo_BWC, args.w_CW, args.b_C);
    const ConvGradients<A> d{planes<A>(args.dx_BTC), planes<A>(args.dhalo_BWC), planes<A>(args.dy_BTC)};
    const int64_t blocks = ceil_div(T, kTokens), slices = ceil_div(C, kChannels);
    const RowGroups groups(B * blocks, 1);
    // One line per group and tap, the bias last.
    const int64_t lines = W + 1;
    A* partial = frame.take_zeros<A>(groups.count * lines * C);
    parallel_tasks(groups.count * slices, [&](int64_t task) {
      const int64_t g = task / slices, c = task % slices * kChannels, count = std::min(kChannels, C - c);
      ScratchFrame task_frame;
      A* dpre = task_frame.take<A>((kTokens + W - 1) * count);
      for (int64_t row = groups.begin(g); row < groups.end(g); ++row) {
        const int64_t b = row / blocks, begin = row % blocks * kTokens;
        backward_block(conv, d, b, begin, std::min(begin + kTokens, T), c, count, dpre, partial + g * lines * C + c, C);
      }
    });
    A* sum = frame.take_zeros<A>(lines * C);
    add_partial_rows(sum, partial, groups.count, lines * C);
    const auto dw = rows<A>(args.dw_CW);
    A* db = args.db_C.data<A>();
    for (int64_t c = 0; c < C; ++c) {
      for (int64_t j = 0; j < W; ++j) dw[c][j] += sum[j * C + c];
      db[c] += sum[W * C + c];
    }
  });
}

void CpuOps::conv_silu_rope_forward(const ConvRopeForward& args) { conv_rope_in_passes(*this, args); }
void CpuOps::conv_silu_rope_backward(const ConvRopeBackward& args) { conv_rope_in_passes(*this, args); }

}  // namespace tmamba
