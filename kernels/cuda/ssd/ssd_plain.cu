// The SSM scan without tensor cores, for the types and sizes that the other kernels do not support: chunks of 32
// tokens, states in the accumulate type.
#include "kernels/cuda/common/plain_tiles.cuh"
#include "kernels/cuda/ssd/ssd.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kTokens = kPlainRows, kThreads = kPlainThreads, kWarps = kPlainWarps;

// Each thread updates its elements of the state, which are in global memory, from chunk to chunk.
template <class A>
__global__ void __launch_bounds__(kThreads) state_scan_kernel(SsdStateScan<A> w) {
  using T = Acc<A>;
  extern __shared__ double shared[];
  __shared__ Decays<A, kTokens> decays;
  T* memory = reinterpret_cast<T*>(shared);
  const SsdInputs<A>& in = w.in;
  const PlainTile<T> x = take_tile(memory, in.K), y = take_tile(memory, in.D);
  const StateScanPlace<A> place(w);
  const Cubes<const A>&x_in = w.reverse ? in.q : in.k, &y_in = w.reverse ? in.dy : in.v;
  const int64_t size = in.K * in.D, slot = place.head * w.grid.segments + place.segment;
  // The address of the state before the n-th chunk. A summary is updated in place.
  const auto state = [&](int64_t n) {
    if (w.exit != nullptr) return w.exit + slot * size;
    return static_cast<T*>(w.chunk_states) + ((place.head - w.first_head) * w.grid.chunks + place.chunk(n)) * size;
  };
  T* current = state(0);
  for (int64_t e = threadIdx.x; e < size; e += kThreads) {
    current[e] = w.entry != nullptr ? w.entry[slot * size + e] : T(0);
  }
  double log_decay = 0;
  for (int64_t n = 0; n < place.count; ++n) {
    const int64_t begin = place.chunk(n) * kTokens;
    const int count = static_cast<int>(in.T - begin < kTokens ? in.T - begin : kTokens);
    __syncthreads();
    if (threadIdx.x < kWarp) decays.load_decays(in, place.b, place.h, begin, count);
    if (x_in.data != nullptr) {
      fill_tile(x, x_in, place.b, begin, begin + count, place.h, in.K);
      fill_tile(y, y_in, place.b, begin, begin + count, place.h, in.D);
    }
    __syncthreads();
    log_decay += decays.log_total;
    const bool ends = n + 1 == place.count, stays = w.exit != nullptr;
    T* next = ends && !stays ? nullptr : state(stays ? n : n + 1);
    for (int64_t e = threadIdx.x; e < size; e += kThreads) {
      const int64_t i = e / in.D, c = e % in.D;
      T sum = 0;
      if (x_in.data != nullptr) {
        for (int s = 0; s < kTokens; ++s) {
          sum += (w.reverse ? decays.from_start[s] : decays.to_end[s] * decays.dt[s]) * x[s][i] * y[s][c];
        }
      }
      sum += decays.total * current[e];
      if (next != nullptr) next[e] = sum;
      if (ends && place.last && w.last.data != nullptr) w.last.at(place.b, place.h, i)[c] = sum;
    }
    current = next;
  }
  if (w.exit != nullptr && threadIdx.x == 0) w.log_decay[slot] = static_cast<T>(log_decay);
}

template <class A>
__global__ void __launch_bounds__(kThreads) output_kernel(SsdOutputs<A> f) {
  using T = Acc<A>;
  extern __shared__ double shared[];
  __shared__ Decays<A, kTokens> decays;
  T* memory = reinterpret_cast<T*>(shared);
  const SsdInputs<A>& in = f.in;
  const PlainTile<T> q = take_tile(memory, in.K), k = take_tile(memory, in.K), v = take_tile(memory, in.D);
  const PlainTile<T> weights = take_tile(memory, kTokens);
  const ChunkPlace place(in, f.grid, f.first_head);
  fill_tile(q, in.q, place.b, place.begin, place.begin + place.count, place.h, in.K);
  fill_tile(k, in.k, place.b, place.begin, place.begin + place.count, place.h, in.K);
  fill_tile(v, in.v, place.b, place.begin, place.begin + place.count, place.h, in.D);
  if (threadIdx.x < kWarp) decays.load_decays(in, place.b, place.h, place.begin, place.count);
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kTokens; i += kThreads) {
    const int t = i / kTokens, s = i % kTokens;
    weights[t][s] = dot(q[t], k[s], in.K) * decays.between(t, s) * decays.dt[s];
  }
  __syncthreads();
  const T* state = static_cast<const T*>(f.states) + (place.slot * f.grid.chunks + place.chunk) * in.K * in.D;
  const T skip = in.skip_H == nullptr ? T(0) : widen(in.skip_H[place.h]);
  for (int64_t i = threadIdx.x; i < place.count * in.D; i += kThreads) {
    const int t = static_cast<int>(i / in.D);
    const int64_t c = i % in.D;
    T through = 0, sum = 0;
    for (int64_t j = 0; j < in.K; ++j) through += q[t][j] * state[j * in.D + c];
    for (int s = 0; s <= t; ++s) sum += weights[t][s] * v[s][c];
    f.y.at(place.b, place.begin + t, place.h)[c] = narrow<A>(sum + decays.from_start[t] * through + skip * v[t][c]);
  }
}

template <class T>
struct GradientTiles {
  PlainTile<T> q, k, v, dy, scores, dscores, pairs;
  T *by_query, *by_key, *product, *skip;
  __device__ GradientTiles(T* memory, int64_t K, int64_t D) {
    q = take_tile(memory, K), k = take_tile(memory, K), v = take_tile(memory, D), dy = take_tile(memory, D);
    scores = take_tile(memory, kTokens), dscores = take_tile(memory, kTokens), pairs = take_tile(memory, kTokens);
    by_query = memory, by_key = memory + kTokens, product = memory + 2 * kTokens, skip = product + kWarps;
  }
};

template <class A>
void __device__ store(A* to, Acc<A> value, bool adds) {
  *to = narrow<A>(adds ? widen(*to) + value : value);
}

// The formulas of ssd_tiles_backward.cu. One warp per token, its lanes across channels.
template <class A>
__global__ void __launch_bounds__(kThreads) gradient_kernel(SsdGradients<A> f) {
  using T = Acc<A>;
  extern __shared__ double shared[];
  __shared__ Decays<A, kTokens> decays;
  const SsdInputs<A>& in = f.in;
  const int64_t K = in.K, D = in.D;
  const GradientTiles<T> s(reinterpret_cast<T*>(shared), K, D);
  const ChunkPlace place(in, f.grid, f.first_head);
  const bool outputs = in.q.data != nullptr;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (outputs) {
    fill_tile(s.q, in.q, place.b, place.begin, place.begin + place.count, place.h, K);
    fill_tile(s.dy, in.dy, place.b, place.begin, place.begin + place.count, place.h, D);
  }
  fill_tile(s.k, in.k, place.b, place.begin, place.begin + place.count, place.h, K);
  fill_tile(s.v, in.v, place.b, place.begin, place.begin + place.count, place.h, D);
  if (threadIdx.x < kWarp) decays.load_decays(in, place.b, place.h, place.begin, place.count);
  __syncthreads();

  const int64_t offset = (place.slot * f.grid.chunks + place.chunk) * K * D;
  const T *state = static_cast<const T*>(f.states) + offset, *adjoint = static_cast<const T*>(f.adjoints) + offset;
  T product = 0, skip_sum = 0;
  for (int64_t e = threadIdx.x; e < K * D; e += kThreads) product += state[e] * adjoint[e];
  for (int i = threadIdx.x; outputs && i < kTokens * kTokens; i += kThreads) {
    const int t = i / kTokens, u = i % kTokens;
    const T decay = decays.between(t, u), dvalue = dot(s.dy[t], s.v[u], D);
    if (t == u) skip_sum += dvalue;
    s.scores[t][u] = dot(s.q[t], s.k[u], K) * decay;
    s.dscores[t][u] = dvalue * decays.dt[u] * decay;
    s.pairs[t][u] = s.scores[t][u] * dvalue * decays.dt[u];
  }
  product = warp_sum(product), skip_sum = warp_sum(skip_sum);
  if (lane == 0) s.product[warp] = product, s.skip[warp] = skip_sum;
  __syncthreads();

  const T skip = !outputs || in.skip_H == nullptr ? T(0) : widen(in.skip_H[place.h]);
  for (int t = warp; t < place.count; t += kWarps) {
    T by_query = 0, by_key = 0, by_value = 0;
    for (int64_t i = lane; i < K; i += kWarp) {
      T dk = dot(adjoint + i * D, static_cast<const T*>(s.v[t]), D) * decays.to_end[t] * decays.dt[t];
      by_key += dk * s.k[t][i];
      if (outputs) {
        T dq = dot(state + i * D, static_cast<const T*>(s.dy[t]), D) * decays.from_start[t];
        by_query += dq * s.q[t][i];
        for (int u = 0; u <= t; ++u) dq += s.dscores[t][u] * s.k[u][i];
        for (int u = t; u < place.count; ++u) dk += s.dscores[u][t] * s.q[u][i];
        f.dq.at(place.b, place.begin + t, place.h)[i] = narrow<A>(dq);
      }
      store(f.dk.at(place.b, place.begin + t, place.h) + i, dk, false);
    }
    for (int64_t c = lane; c < D; c += kWarp) {
      T dv = 0;
      for (int64_t i = 0; i < K; ++i) dv += adjoint[i * D + c] * s.k[t][i];
      dv *= decays.to_end[t];
      for (int u = t; outputs && u < place.count; ++u) dv += s.scores[u][t] * s.dy[u][c];
      by_value += dv * s.v[t][c];
      dv *= decays.dt[t];
      if (outputs) dv += skip * s.dy[t][c];
      store(f.dv.at(place.b, place.begin + t, place.h) + c, dv, f.accumulate_v);
    }
    by_query = warp_sum(by_query), by_key = warp_sum(by_key), by_value = warp_sum(by_value);
    if (lane == 0) {
      s.by_query[t] = by_query, s.by_key[t] = by_key;
      f.ddt.at(place.b, place.begin + t)[place.h] = by_value;
    }
  }
  __syncthreads();
  const int j = static_cast<int>(threadIdx.x);
  if (j < place.count) {
    T sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += s.product[w];
    sum *= decays.total;
    for (int u = 0; u < j; ++u) sum += s.by_key[u];
    for (int t = j; outputs && t < place.count; ++t) {
      sum += s.by_query[t];
      for (int u = 0; u < j; ++u) sum += s.pairs[t][u];
    }
    f.dlog_a.at(place.b, place.begin + j)[place.h] = sum;
  }
  if (j == 0) {
    T sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += s.skip[w];
    f.skip_partial[place.head * f.grid.chunks + place.chunk] = sum;
  }
}

template <class T>
size_t gradient_bytes(int64_t K, int64_t D) {
  return 2 * plain_tile_bytes<T>(K) + 2 * plain_tile_bytes<T>(D) + 3 * plain_tile_bytes<T>(kTokens) +
         sizeof(T) * (2 * kTokens + 2 * kWarps);
}

template <class A>
void state_scan(cudaStream_t stream, const SsdStateScan<A>& w) {
  const size_t shared = plain_tile_bytes<Acc<A>>(w.in.K) + plain_tile_bytes<Acc<A>>(w.in.D);
  launch(stream, {w.segment_count, w.head_count}, kThreads, shared, state_scan_kernel<A>, w);
}

template <class A>
void outputs(cudaStream_t stream, const SsdOutputs<A>& f) {
  const size_t shared =
      2 * plain_tile_bytes<Acc<A>>(f.in.K) + plain_tile_bytes<Acc<A>>(f.in.D) + plain_tile_bytes<Acc<A>>(kTokens);
  launch(stream, {f.grid.chunks, f.head_count}, kThreads, shared, output_kernel<A>, f);
}

template <class A>
void gradients(cudaStream_t stream, const SsdGradients<A>& f) {
  launch(stream, {f.grid.chunks, f.head_count}, kThreads, gradient_bytes<Acc<A>>(f.in.K, f.in.D), gradient_kernel<A>,
         f);
}

}  // namespace

template <class A>
SsdKernels<A> ssd_plain_kernels(int64_t K, int64_t D) {
  const size_t needed = gradient_bytes<Acc<A>>(K, D) + sizeof(Decays<A, kTokens>);
  check_block_memory(needed, "ssd: heads of ", K, " x ", D, " in ", name_of(DTypeOf<A>::value));
  return {.state_scan_blocks = 512,
          .chunk = kTokens,
          .state_bytes = sizeof(Acc<A>),
          .decay_bytes = 0,
          .decays = nullptr,
          .state_scan = state_scan<A>,
          .outputs = outputs<A>,
          .gradients = gradients<A>};
}

template SsdKernels<bf16_t> ssd_plain_kernels(int64_t, int64_t);
template SsdKernels<float> ssd_plain_kernels(int64_t, int64_t);
template SsdKernels<double> ssd_plain_kernels(int64_t, int64_t);

}  // namespace tmamba::cuda
