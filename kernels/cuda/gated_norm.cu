// Gated norm per head: kLanes threads hold one token's head. A block takes kHeads neighbouring heads (each of its
// groups always the same one) of a range of tokens.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/views.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kMostSteps = 4;  // 16-byte pieces of a head per thread

// SiLU(z) and its slope; without a gate, 1 and nothing.
template <class A>
struct Gate {
  Acc<A> value, slope;
  __device__ Gate(bool gated, Acc<A> z) {
    const Acc<A> s = sigmoid<A>(z);
    value = gated ? z * s : Acc<A>(1);
    slope = s * (1 + z * (1 - s));
  }
};

template <class A>
constexpr int kLanes = std::is_same_v<A, bf16_t> ? 16 : 32;
template <class A>
constexpr int kGroups = kThreads / kLanes<A>;

template <class A>
struct Problem {
  Cubes<const A> y, z;  // z may be absent
  Rows<const A> w;
  int64_t B, T, H, D;
  int heads;  // of a block: a power of two, at most kGroups
  int64_t rows_per_block;
  bool wide;
};

// The head and the tokens of this thread's group.
template <class A>
struct Place {
  int lane, slot;
  int64_t h, first, end, step;
  __device__ explicit Place(const Problem<A>& p) {
    lane = threadIdx.x % kLanes<A>;
    slot = threadIdx.x / kLanes<A>;
    h = static_cast<int64_t>(blockIdx.y) * p.heads + slot % p.heads;
    const int64_t begin = blockIdx.x * p.rows_per_block, N = p.B * p.T;
    first = begin + slot / p.heads;
    end = begin + p.rows_per_block < N ? begin + p.rows_per_block : N;
    step = kGroups<A> / p.heads;
  }
};

template <class A>
struct Forward {
  Problem<A> p;
  Cubes<A> out;
  Planes<Acc<A>> rstd;
  double eps;
};

template <class A, int kSteps>
__global__ void __launch_bounds__(kThreads) forward_kernel(Forward<A> f) {
  constexpr int V = kVec<A>;
  const Problem<A>& p = f.p;
  const Place<A> place(p);
  const bool gated = p.z.data != nullptr;
  const int64_t rounds = ceil_div(p.rows_per_block, place.step);
  for (int64_t round = 0; round < rounds; ++round) {  // every lane takes part in every sum
    const int64_t n = place.first + round * place.step;
    const bool here = n < place.end && place.h < p.H;
    const DivMod token(here ? n : 0, p.T);
    const int64_t b = token.quotient, t = token.remainder, h = here ? place.h : 0;
    Acc<A> g[kSteps][V];
    Acc<A> squares = 0;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int64_t c = (place.lane + j * kLanes<A>)*V, left = here ? p.D - c : 0;
      if (left <= 0) continue;
      const Raw<A> y = load(p.y.at(b, t, h) + c, left, p.wide);
      Raw<A> z{};
      if (gated) z = load(p.z.at(b, t, h) + c, left, p.wide);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        g[j][e] = y[e] * Gate<A>(gated, z[e]).value;
        squares += g[j][e] * g[j][e];
      }
    }
    squares = warp_sum<kLanes<A>>(squares);
    const Acc<A> rstd = 1 / sqrt(squares / static_cast<Acc<A>>(p.D) + static_cast<Acc<A>>(f.eps));
    if (here && place.lane == 0) f.rstd.at(b, t)[h] = rstd;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int64_t c = (place.lane + j * kLanes<A>)*V, left = here ? p.D - c : 0;
      if (left <= 0) continue;
      const Raw<A> w = load(p.w[h] + c, left, p.wide);
      Raw<A> out;
#pragma unroll
      for (int e = 0; e < V; ++e) out.v[e] = narrow<A>(g[j][e] * rstd * w[e]);
      store(f.out.at(b, t, h) + c, out, left, p.wide);
    }
  }
}

template <class A>
struct Backward {
  Problem<A> p;
  Cubes<A> dy, dz;
  Acc<A>* dw_partial;  // [blocks of rows, H, D]
  Cubes<const A> dout;
  Planes<const Acc<A>> rstd;
};

template <class A, int kSteps>
__global__ void __launch_bounds__(kThreads, kSteps == 1 && sizeof(A) == 2 ? 3 : 1) backward_kernel(Backward<A> f) {
  constexpr int V = kVec<A>;
  __shared__ Acc<A> scratch[kThreads * V];
  const Problem<A>& p = f.p;
  const Place<A> place(p);
  const bool gated = p.z.data != nullptr;
  const auto column = [&](int j) { return static_cast<int64_t>(place.lane + j * kLanes<A>) * V; };
  const int64_t h = place.h < p.H ? place.h : 0;
  Acc<A> dw[kSteps][V] = {};
  Raw<A> w[kSteps];
#pragma unroll
  for (int j = 0; j < kSteps; ++j) w[j] = load(p.w[h] + column(j), p.D - column(j), p.wide);
  const int64_t rounds = ceil_div(p.rows_per_block, place.step);
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t n = place.first + round * place.step;
    const bool here = n < place.end && place.h < p.H;
    const DivMod token(here ? n : 0, p.T);
    const int64_t b = token.quotient, t = token.remainder;
    const Acc<A> rstd = f.rstd.at(b, t)[h];
    Raw<A> y[kSteps], z[kSteps], dout[kSteps];
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int64_t c = column(j), left = here ? p.D - c : 0;
      y[j] = load(p.y.at(b, t, h) + c, left, p.wide);
      z[j] = load(p.z.at(b, t, h) + c, gated ? left : 0, p.wide);
      dout[j] = load(f.dout.at(b, t, h) + c, left, p.wide);
    }
    Acc<A> gates[kSteps][V], slopes[kSteps][V];
    Acc<A> dot = 0;  // sum of w dout g
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Gate<A> gate(gated, z[j][e]);
        gates[j][e] = gate.value, slopes[j][e] = gate.slope;
        const Acc<A> g = dout[j][e] * y[j][e] * gate.value;
        dot += w[j][e] * g;
        dw[j][e] += g * rstd;
      }
    }
    dot = warp_sum<kLanes<A>>(dot);
    const Acc<A> along = dot * rstd * rstd * rstd / static_cast<Acc<A>>(p.D);
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int64_t c = column(j), left = here ? p.D - c : 0;
      if (left <= 0) continue;
      Raw<A> dy, dz;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Acc<A> dg = rstd * w[j][e] * dout[j][e] - y[j][e] * gates[j][e] * along;
        dy.v[e] = narrow<A>(dg * gates[j][e]);
        dz.v[e] = narrow<A>(dg * y[j][e] * slopes[j][e]);
      }
      store(f.dy.at(b, t, h) + c, dy, left, p.wide);
      if (gated) store(f.dz.at(b, t, h) + c, dz, left, p.wide);
    }
  }
  // Groups of one head meet in shared memory; the first of them adds up in order.
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < V; ++e) scratch[threadIdx.x * V + e] = dw[j][e];
    __syncthreads();
    const int64_t c = (place.lane + j * kLanes<A>)*V;
    if (place.slot >= p.heads || place.h >= p.H || c >= p.D) continue;
    Acc<A>* line = f.dw_partial + (blockIdx.x * p.H + place.h) * p.D;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      Acc<A> sum = 0;
      for (int slot = place.slot; slot < kGroups<A>; slot += p.heads) {
        sum += scratch[(slot * kLanes<A> + place.lane) * V + e];
      }
      if (c + e < p.D) line[c + e] = sum;
    }
  }
}

template <class A>
Problem<A> make_problem(const ConstTensor& y_BTHD, const ConstTensor& z_BTHD, const ConstTensor& w_HD,
                        int64_t most_blocks, bool wide) {
  Problem<A> p{cubes<A>(y_BTHD),
               cubes<A>(z_BTHD),
               rows<A>(w_HD),
               y_BTHD.size(0),
               y_BTHD.size(1),
               y_BTHD.size(2),
               y_BTHD.size(3),
               1,
               0,
               wide};
  constexpr int64_t kMost = int64_t{kLanes<A>} * kMostSteps * kVec<A>;
  TM_CHECK(p.D <= kMost, "gated_norm: heads of ", p.D, " channels, at most ", kMost, " are supported on the GPU");
  while (p.heads < p.H && p.heads < kGroups<A>) p.heads *= 2;
  const int64_t at_once = kGroups<A> / p.heads, N = p.B * p.T;
  p.rows_per_block = round_up(ceil_div(N, std::min(most_blocks, ceil_div(N, 4 * at_once))), at_once);
  return p;
}

// Calls f.template operator()<kSteps>() for the pieces of a head of D channels.
template <class A, class F>
void dispatch_steps(int64_t D, const F& f) {
  if (D <= int64_t{kLanes<A>} * kVec<A>) return f.template operator()<1>();
  f.template operator()<kMostSteps>();
}

template <class A>
Grid grid_of(const Problem<A>& p) {
  return {ceil_div(p.B * p.T, p.rows_per_block), ceil_div(p.H, p.heads)};
}

}  // namespace

void CudaOps::gated_norm_forward(Tensor out_BTHD, Tensor rstd_BTH, ConstTensor y_BTHD, ConstTensor z_BTHD,
                                 ConstTensor w_HD, double eps) {
  const int64_t B = y_BTHD.size(0), T = y_BTHD.size(1), H = y_BTHD.size(2), D = y_BTHD.size(3);
  const DType dtype = y_BTHD.dtype();
  if (B * T * H * D == 0) return;
  expect(out_BTHD, "gated_norm out_BTHD", dtype, {B, T, H, D});
  expect(rstd_BTH, "gated_norm rstd_BTH", accumulate_type(dtype), {B, T, H});
  expect(y_BTHD, "gated_norm y_BTHD", dtype, {B, T, H, D});
  expect_optional(z_BTHD, "gated_norm z_BTHD", dtype, {B, T, H, D});
  expect(w_HD, "gated_norm w_HD", dtype, {H, D});
  const bool wide = wide_rows({out_BTHD, y_BTHD, z_BTHD, w_HD});
  dispatch_activation(dtype, [&]<class A>() {
    const Problem<A> p = make_problem<A>(y_BTHD, z_BTHD, w_HD, 1 << 20, wide);
    const Forward<A> f{p, cubes<A>(out_BTHD), planes<Acc<A>>(rstd_BTH), eps};
    dispatch_steps<A>(D,
                      [&]<int kSteps>() { launch(stream(), grid_of(p), kThreads, 0, forward_kernel<A, kSteps>, f); });
  });
}

void CudaOps::gated_norm_backward(Tensor dy_BTHD, Tensor dz_BTHD, Tensor dw_HD, ConstTensor dout_BTHD,
                                  ConstTensor y_BTHD, ConstTensor z_BTHD, ConstTensor rstd_BTH, ConstTensor w_HD) {
  const int64_t B = y_BTHD.size(0), T = y_BTHD.size(1), H = y_BTHD.size(2), D = y_BTHD.size(3);
  const DType dtype = y_BTHD.dtype();
  if (B * T * H * D == 0) return;
  expect(dy_BTHD, "gated_norm dy_BTHD", dtype, {B, T, H, D});
  if (!z_BTHD.empty()) expect(dz_BTHD, "gated_norm dz_BTHD", dtype, {B, T, H, D});
  expect(dw_HD, "gated_norm dw_HD", accumulate_type(dtype), {H, D});
  expect(dout_BTHD, "gated_norm dout_BTHD", dtype, {B, T, H, D});
  expect(y_BTHD, "gated_norm y_BTHD", dtype, {B, T, H, D});
  expect_optional(z_BTHD, "gated_norm z_BTHD", dtype, {B, T, H, D});
  expect(rstd_BTH, "gated_norm rstd_BTH", accumulate_type(dtype), {B, T, H});
  expect(w_HD, "gated_norm w_HD", dtype, {H, D});
  const bool wide = wide_rows({dy_BTHD, dz_BTHD, dout_BTHD, y_BTHD, z_BTHD, w_HD});
  dispatch_activation(dtype, [&]<class A>() {
    const Problem<A> p = make_problem<A>(y_BTHD, z_BTHD, w_HD, 1056, wide);
    const Grid grid = grid_of(p);
    Acc<A>* partial = workspace_.take<Acc<A>>(grid.x * H * D);
    const Backward<A> f{p,       cubes<A>(dy_BTHD),   cubes<A>(dz_BTHD),
                        partial, cubes<A>(dout_BTHD), planes<Acc<A>>(rstd_BTH)};
    dispatch_steps<A>(D, [&]<int kSteps>() { launch(stream(), grid, kThreads, 0, backward_kernel<A, kSteps>, f); });
    add_lines<Acc<A>>(stream(), {dw_HD.data<Acc<A>>(), D, dw_HD.stride(0), 1}, partial, grid.x, H * D);
  });
}

}  // namespace tmamba::cuda
