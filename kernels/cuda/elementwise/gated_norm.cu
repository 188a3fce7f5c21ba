// Gated norm per head. A group of kLanes threads holds one token's head, kSteps 16-byte vectors per thread. A block
// computes several neighbouring heads, each group always the same one, of a part of one sequence's tokens.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/partial_sums.cuh"
#include "kernels/cuda/common/pipeline.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 128;
// The approximate number of blocks. Forward: many times the resident blocks. Backward, where each block stores a row of
// partial sums: as many as are resident on an H200.
constexpr int64_t kForwardBlocks = 8192, kBackwardBlocks = 264;

constexpr int kStages = 2;  // rounds of tokens: one in use, the other in flight
// Resident blocks per SM: as many as shared memory allows with 16 bytes per tensor, thread and round.
constexpr int kForwardBlocksPerSm = 5, kBackwardBlocksPerSm = 4;
template <class A, int kSteps>
using ForwardPipeline = ThreadPipeline<A, kThreads, 2 * kSteps, kStages>;
template <class A, int kSteps>
using BackwardPipeline = ThreadPipeline<A, kThreads, 3 * kSteps, kStages>;

// SiLU(z) and its derivative. Without a gate the value is 1 and the slope unused.
template <class A>
struct Gate {
  Acc<A> value, slope;
  __device__ Gate(bool gated, Acc<A> z) {
    const Acc<A> s = sigmoid<A>(z);
    value = gated ? z * s : Acc<A>(1);
    slope = s + z * s * (1 - s);
  }
};

template <class A>
struct Problem {
  Cubes<const A> y, z;  // z may be absent
  Rows<const A> w;
  int64_t B, T, H, D;
  int heads;             // per block: a power of two
  int64_t token_blocks;  // per sequence
  int64_t step;          // tokens that these blocks process per round
  bool aligned16;
};

// The head and the tokens of this thread's group.
template <class A, int kLanes>
struct Place {
  static constexpr int kGroups = kThreads / kLanes;
  int lane, slot;
  int64_t b, h, first;
  bool here;  // the head exists

  // Tokens are interleaved among blocks, so that all blocks together traverse memory in order.
  __device__ explicit Place(const Problem<A>& p) {
    lane = static_cast<int>(threadIdx.x) % kLanes;
    slot = static_cast<int>(threadIdx.x) / kLanes;
    h = static_cast<int64_t>(blockIdx.y) * p.heads + slot % p.heads;
    here = h < p.H;
    if (!here) h = 0;
    const DivMod at(blockIdx.x, p.token_blocks);
    b = at.quotient;
    first = at.remainder * (kGroups / p.heads) + slot / p.heads;
  }
  // Whether all vectors of this thread are complete and aligned.
  __device__ bool whole(const Problem<A>& p, int steps) const {
    return p.aligned16 && column(steps - 1) + kVec<A> <= p.D;
  }
  // The address of this thread's first vector of its first token.
  template <class T>
  __device__ T* begin(const Cubes<T>& x) const {
    return x.at(b, first, h) + column(0);
  }
  // The first channel of vector j.
  __device__ int column(int j) const { return (lane + j * kLanes) * kVec<A>; }
};

// Calls start(stage, there) for each token of this thread's group and, kStages rounds later, f(stage, round, there).
// All threads of a block take part in all rounds; `there` is false when a group has no tokens left.
template <class R, int kStages, class A, int kLanes, class Start, class F>
__device__ void for_each_token(const Problem<A>& p, const Place<A, kLanes>& place, const Start& start, const F& f) {
  const int rounds = static_cast<int>((p.T + p.step - 1) / p.step);
  const int own = place.here && place.first < p.T ? static_cast<int>((p.T - place.first + p.step - 1) / p.step) : 0;
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    if (stage < rounds) start(stage, stage < own);
    R::commit();
  }
  int stage = 0;
  for (int round = 0; round < rounds; ++round) {
    R::wait();
    f(stage, round, round < own);
    if (round + kStages < rounds) start(stage, round + kStages < own);
    R::commit();
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
}

// Loads a token's head into the pipeline: vector j of a tensor is vector `vector` + j * `pitch` of the stage.
template <class A, int kLanes, int kSteps, class R>
__device__ void load_head_async(R& pipeline, int stage, int vector, int pitch, const A* from,
                                const Place<A, kLanes>& place, const Problem<A>& p, bool whole, bool there) {
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    const int offset = j * kLanes * kVec<A>;
    if (whole) {
      pipeline.load_full_async(stage, vector + j * pitch, from + offset, there);
    } else {
      pipeline.load_async(stage, vector + j * pitch, from + offset, there ? p.D - place.column(j) : 0, p.aligned16);
    }
  }
}

// Stores vector j of a token's head.
template <class A, int kLanes>
__device__ void store_vector(A* to, int j, const Acc<A> (&x)[kVec<A>], const Place<A, kLanes>& place,
                             const Problem<A>& p, bool whole) {
  const Raw<A> out = Raw<A>::rounded(x);
  A* const at = to + j * kLanes * kVec<A>;
  if (whole) {
    *reinterpret_cast<uint4*>(at) = reinterpret_cast<const uint4&>(out);
  } else {
    store(at, out, p.D - place.column(j), p.aligned16);
  }
}

template <class A>
struct Forward {
  Problem<A> p;
  Cubes<A> out;
  Planes<Acc<A>> rstd;
  double eps;
};

template <class A, int kLanes, int kSteps>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 2 && kSteps <= 3 ? kForwardBlocksPerSm : 1)
    forward_kernel(const __grid_constant__ Forward<A> f) {
  constexpr int V = kVec<A>;
  extern __shared__ uint4 shared[];
  using Copies = ForwardPipeline<A, kSteps>;
  Copies pipeline(shared);
  const Problem<A>& p = f.p;
  const Place<A, kLanes> place(p);
  const bool gated = p.z.data != nullptr;
  const int D = static_cast<int>(p.D);
  Raw<A> w[kSteps];
#pragma unroll
  for (int j = 0; j < kSteps; ++j) w[j] = load(p.w[place.h] + place.column(j), D - place.column(j), p.aligned16);
  const Acc<A> share = Acc<A>(1) / static_cast<Acc<A>>(p.D);
  const bool whole = place.whole(p, kSteps);
  const A *next_y = place.begin(p.y), *next_z = gated ? place.begin(p.z) : nullptr;
  A* out_row = place.begin(f.out);
  Acc<A>* rstd_at = f.rstd.at(place.b, place.first) + place.h;
  const auto start = [&](int stage, bool there) {
    load_head_async<A, kLanes, kSteps>(pipeline, stage, 0, 2, next_y, place, p, whole, there);
    load_head_async<A, kLanes, kSteps>(pipeline, stage, 1, 2, next_z, place, p, whole, there && gated);
    next_y += p.step * p.y.t, next_z += p.step * p.z.t;
  };
  for_each_token<Copies, kStages>(p, place, start, [&](int stage, int, bool there) {
    Acc<A> g[kSteps][V];
    Acc<A> squares = 0;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const Raw<A> y = pipeline.at(stage, 2 * j), z = pipeline.at(stage, 2 * j + 1);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        g[j][e] = y[e] * Gate<A>(gated, z[e]).value;
        squares += g[j][e] * g[j][e];
      }
    }
    squares = warp_sum<kLanes>(squares);
    const Acc<A> rstd = 1 / sqrt(squares * share + static_cast<Acc<A>>(f.eps));
    if (!there) return;
    if (place.lane == 0) *rstd_at = rstd;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      Acc<A> out[V];
#pragma unroll
      for (int e = 0; e < V; ++e) out[e] = g[j][e] * rstd * w[j][e];
      store_vector(out_row, j, out, place, p, whole);
    }
    out_row += p.step * f.out.t, rstd_at += p.step * f.rstd.t;
  });
}

template <class A>
struct Backward {
  Problem<A> p;
  Cubes<A> dy, dz;
  Acc<A>* dw_partial;  // [blocks of tokens, H, D]
  Cubes<const A> dout;
  Planes<const Acc<A>> rstd;
};

// Sums dw over the groups of each head in order, and stores the block's row of partial sums.
template <class A, int kLanes, int kSteps>
__device__ void store_sums(const Backward<A>& f, const Place<A, kLanes>& place, const Acc<A> (&dw)[kSteps][kVec<A>]) {
  constexpr int V = kVec<A>, kGroups = Place<A, kLanes>::kGroups;
  __shared__ Acc<A> scratch[kThreads * V];
  const int D = static_cast<int>(f.p.D);
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < V; ++e) scratch[threadIdx.x * V + e] = dw[j][e];
    __syncthreads();
    const int c = place.column(j);
    if (place.slot >= f.p.heads || !place.here || c >= D) continue;
    Acc<A>* row = f.dw_partial + (blockIdx.x * f.p.H + place.h) * f.p.D;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      Acc<A> sum = 0;
      for (int slot = place.slot; slot < kGroups; slot += f.p.heads) {
        sum += scratch[(slot * kLanes + place.lane) * V + e];
      }
      if (c + e < D) row[c + e] = sum;
    }
  }
}

template <class A, int kLanes, int kSteps>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 2 && kSteps <= 3 ? kBackwardBlocksPerSm : 1)
    backward_kernel(const __grid_constant__ Backward<A> f) {
  constexpr int V = kVec<A>;
  extern __shared__ uint4 shared[];
  launch_dependent_grids();
  using Copies = BackwardPipeline<A, kSteps>;
  Copies pipeline(shared);
  const Problem<A>& p = f.p;
  const Place<A, kLanes> place(p);
  const bool gated = p.z.data != nullptr;
  const int D = static_cast<int>(p.D);
  Acc<A> dw[kSteps][V] = {};
  Raw<A> w[kSteps];
#pragma unroll
  for (int j = 0; j < kSteps; ++j) w[j] = load(p.w[place.h] + place.column(j), D - place.column(j), p.aligned16);
  const Acc<A> share = Acc<A>(1) / static_cast<Acc<A>>(p.D);
  const bool whole = place.whole(p, kSteps);
  const A *next_y = place.begin(p.y), *next_z = gated ? place.begin(p.z) : nullptr, *next_dout = place.begin(f.dout);
  A *dy_row = place.begin(f.dy), *dz_row = gated ? place.begin(f.dz) : nullptr;
  const Acc<A>* rstd_at = f.rstd.at(place.b, place.first) + place.h;
  const auto start = [&](int stage, bool there) {
    load_head_async<A, kLanes, kSteps>(pipeline, stage, 0, 3, next_y, place, p, whole, there);
    load_head_async<A, kLanes, kSteps>(pipeline, stage, 1, 3, next_z, place, p, whole, there && gated);
    load_head_async<A, kLanes, kSteps>(pipeline, stage, 2, 3, next_dout, place, p, whole, there);
    next_y += p.step * p.y.t, next_z += p.step * p.z.t, next_dout += p.step * f.dout.t;
  };
  Acc<A> next_rstd = place.here && place.first < p.T ? *rstd_at : Acc<A>(0);
  for_each_token<Copies, kStages>(p, place, start, [&](int stage, int round, bool there) {
    const Acc<A> rstd = next_rstd;
    rstd_at += p.step * f.rstd.t;
    const bool more = there && place.first + (round + 1) * p.step < p.T;
    next_rstd = more ? *rstd_at : Acc<A>(0);
    Acc<A> dot = 0;  // sum of w dout g
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const Raw<A> y = pipeline.at(stage, 3 * j), z = pipeline.at(stage, 3 * j + 1),
                   dout = pipeline.at(stage, 3 * j + 2);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Acc<A> g = dout[e] * y[e] * Gate<A>(gated, z[e]).value;
        dot += w[j][e] * g;
        dw[j][e] += g * rstd;
      }
    }
    dot = warp_sum<kLanes>(dot);
    if (!there) return;
    const Acc<A> along = dot * rstd * rstd * rstd * share;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const Raw<A> y = pipeline.at(stage, 3 * j), z = pipeline.at(stage, 3 * j + 1),
                   dout = pipeline.at(stage, 3 * j + 2);
      Acc<A> dy[V], dz[V];
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Gate<A> gate(gated, z[e]);
        const Acc<A> dg = w[j][e] * (rstd * dout[e]) - y[e] * along * gate.value;
        dy[e] = dg * gate.value;
        dz[e] = dg * (y[e] * gate.slope);
      }
      store_vector(dy_row, j, dy, place, p, whole);
      if (gated) store_vector(dz_row, j, dz, place, p, whole);
    }
    dy_row += p.step * f.dy.t, dz_row += p.step * f.dz.t;
  });
  store_sums<A, kLanes, kSteps>(f, place, dw);
}

// Selects lanes and vectors per thread for heads of D channels: the fewest lanes with at most three vectors per thread.
template <class A, class F>
void dispatch_lanes(int64_t D, const F& f) {
  const int64_t vectors = ceil_div(D, kVec<A>);
  if (vectors <= 8) return f.template operator()<4, 2>();
  if (vectors <= 12) return f.template operator()<4, 3>();
  if (vectors <= 16) return f.template operator()<8, 2>();
  if (vectors <= 24) return f.template operator()<8, 3>();
  if (vectors <= 48) return f.template operator()<16, 3>();
  TM_CHECK(vectors <= 128, "gated_norm: heads of ", D, " channels, at most ", 128 * kVec<A>,
           " are supported on the GPU");
  f.template operator()<32, 4>();
}

template <class A, int kLanes>
Problem<A> make_problem(const ConstTensor& y_BTHD, const ConstTensor& z_BTHD, const ConstTensor& w_HD,
                        int64_t most_blocks, bool aligned16) {
  constexpr int kGroups = Place<A, kLanes>::kGroups;
  const int64_t B = y_BTHD.size(0), T = y_BTHD.size(1), H = y_BTHD.size(2);
  int heads = 1;
  while (heads < H && heads < kGroups) heads *= 2;
  const int64_t at_once = kGroups / heads, blocks = ceil_div(most_blocks, B * ceil_div(H, heads));
  const int64_t token_blocks = std::min(blocks, ceil_div(T, 4 * at_once));
  return {cubes<A>(y_BTHD), cubes<A>(z_BTHD),       rows<A>(w_HD), B, T, H, y_BTHD.size(3), heads,
          token_blocks,     token_blocks * at_once, aligned16};
}

template <class A>
Grid grid_of(const Problem<A>& p) {
  return {p.B * p.token_blocks, ceil_div(p.H, p.heads)};
}

}  // namespace

void CudaOps::gated_norm_forward(const GatedNormForward& args) {
  const int64_t B = args.y_BTHD.size(0), T = args.y_BTHD.size(1), H = args.y_BTHD.size(2), D = args.y_BTHD.size(3);
  const DType dtype = args.y_BTHD.dtype();
  if (B * T * H * D == 0) return;
  check_args(Device::cuda, args);
  const bool aligned16 = rows_aligned16({args.out_BTHD, args.y_BTHD, args.z_BTHD, args.w_HD});
  dispatch_activation(dtype, [&]<class A>() {
    dispatch_lanes<A>(D, [&]<int kLanes, int kSteps>() {
      const Problem<A> p = make_problem<A, kLanes>(args.y_BTHD, args.z_BTHD, args.w_HD, kForwardBlocks, aligned16);
      const Forward<A> f{p, cubes<A>(args.out_BTHD), planes<Acc<A>>(args.rstd_BTH), args.eps};
      launch(stream(), grid_of(p), kThreads, ForwardPipeline<A, kSteps>::kBytes, forward_kernel<A, kLanes, kSteps>, f);
    });
  });
}

void CudaOps::gated_norm_backward(const GatedNormBackward& args) {
  const int64_t B = args.y_BTHD.size(0), T = args.y_BTHD.size(1), H = args.y_BTHD.size(2), D = args.y_BTHD.size(3);
  const DType dtype = args.y_BTHD.dtype();
  if (B * T * H * D == 0) return;
  check_args(Device::cuda, args);
  const bool aligned16 =
      rows_aligned16({args.dy_BTHD, args.dz_BTHD, args.dout_BTHD, args.y_BTHD, args.z_BTHD, args.w_HD});
  dispatch_activation(dtype, [&]<class A>() {
    dispatch_lanes<A>(D, [&]<int kLanes, int kSteps>() {
      const Problem<A> p = make_problem<A, kLanes>(args.y_BTHD, args.z_BTHD, args.w_HD, kBackwardBlocks, aligned16);
      const Grid grid = grid_of(p);
      Acc<A>* partial = workspace_.take<Acc<A>>(grid.x * H * D);
      const Backward<A> f{p,       cubes<A>(args.dy_BTHD),   cubes<A>(args.dz_BTHD),
                          partial, cubes<A>(args.dout_BTHD), planes<Acc<A>>(args.rstd_BTH)};
      launch(stream(), grid, kThreads, BackwardPipeline<A, kSteps>::kBytes, backward_kernel<A, kLanes, kSteps>, f);
      add_partial_rows(stream(), SumTarget<Acc<A>>{args.dw_HD.data<Acc<A>>(), D, args.dw_HD.stride(0), 1}, partial,
                       grid.x, H * D);
    });
  });
}

}  // namespace tmamba::cuda
