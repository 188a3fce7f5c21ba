// Attention without tensor cores, for the types and head widths that the other kernels do not support. A block of eight
// warps owns 32 rows, four per warp, and iterates over the other side in tiles of 32 rows, one per lane.
#include <limits>

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/common/plain_tiles.cuh"

namespace tmamba::cuda {

namespace {

constexpr int kTile = kPlainRows, kThreads = kPlainThreads, kPerWarp = kTile / kPlainWarps;
constexpr int kColumns = 8;  // channels of a row per lane: D <= 256

// acc (columns lane, lane + 32, ..) += the sum over all lanes of the lane's weight times the lane's row of the tile.
template <class T>
__device__ void add_weighted(T (&acc)[kColumns], T weight, const PlainTile<T>& tile, int64_t D) {
  const int lane = threadIdx.x % kWarp;
  for (int row = 0; row < kTile; ++row) {
    const T w = __shfl_sync(0xFFFFFFFFu, weight, row);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (lane + j * kWarp < D) acc[j] += w * tile[row][lane + j * kWarp];
    }
  }
}

template <class T>
__device__ T warp_max(T x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(0xFFFFFFFFu, x, step);
    x = x > other ? x : other;
  }
  return x;
}

template <class A>
__global__ void __launch_bounds__(kThreads) forward_kernel(AttentionForwardViews<A> f) {
  using T = Acc<A>;
  extern __shared__ double shared[];
  T* memory = reinterpret_cast<T*>(shared);
  const AttentionSizes& s = f.size;
  const PlainTile<T> q = take_tile(memory, s.D), k = take_tile(memory, s.D), v = take_tile(memory, s.D);
  const int64_t b = blockIdx.y / s.H, h = blockIdx.y % s.H, first = static_cast<int64_t>(blockIdx.x) * kTile;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T scale = static_cast<T>(s.scale), infinity = std::numeric_limits<T>::infinity();
  const int64_t last = first + kTile < s.T ? first + kTile : s.T, key_end = s.q_begin + last;
  fill_tile(q, f.q, b, first, last, h, s.D);
  T acc[kPerWarp][kColumns] = {}, max[kPerWarp], sum[kPerWarp] = {};
  for (int i = 0; i < kPerWarp; ++i) max[i] = -infinity;
  for (int64_t begin = 0; begin < key_end; begin += kTile) {
    __syncthreads();
    fill_tile(k, f.k, b, begin, key_end, h, s.D);
    fill_tile(v, f.v, b, begin, key_end, h, s.D);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPerWarp; ++i) {
      const int row = warp * kPerWarp + i;
      const bool visible = begin + lane <= s.q_begin + first + row;
      const T score = visible ? dot(q[row], k[lane], s.D) * scale : -infinity;
      const T larger = fmax(max[i], warp_max(score));
      // Every query attends to a key of the first tile, so the maximum is finite from there on.
      const T keep = exp(max[i] - larger), p = visible ? exp(score - larger) : T(0);
      max[i] = larger;
      sum[i] = sum[i] * keep + warp_sum(p);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) acc[i][j] *= keep;
      add_weighted(acc[i], p, v, s.D);
    }
  }
#pragma unroll
  for (int i = 0; i < kPerWarp; ++i) {
    const int64_t t = first + warp * kPerWarp + i;
    if (t >= s.T) continue;
    A* o = f.o.at(b, t, h);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (lane + j * kWarp < s.D) o[lane + j * kWarp] = narrow<A>(acc[i][j] / sum[i]);
    }
    if (lane == 0) f.lse.at(b, t)[h] = max[i] + log(sum[i]);
  }
}

// dq of 32 queries, from all keys they attend to.
template <class A>
__global__ void __launch_bounds__(kThreads) query_gradient_kernel(AttentionBackwardViews<A> f) {
  using T = Acc<A>;
  extern __shared__ double shared[];
  T* memory = reinterpret_cast<T*>(shared);
  const AttentionSizes& s = f.size;
  const PlainTile<T> q = take_tile(memory, s.D), d_o = take_tile(memory, s.D);
  const PlainTile<T> k = take_tile(memory, s.D), v = take_tile(memory, s.D);
  const int64_t b = blockIdx.y / s.H, h = blockIdx.y % s.H, first = static_cast<int64_t>(blockIdx.x) * kTile;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T scale = static_cast<T>(s.scale);
  const int64_t last = first + kTile < s.T ? first + kTile : s.T, key_end = s.q_begin + last;
  fill_tile(q, f.q, b, first, last, h, s.D);
  fill_tile(d_o, f.d_o, b, first, last, h, s.D);
  T acc[kPerWarp][kColumns] = {};
  for (int64_t begin = 0; begin < key_end; begin += kTile) {
    __syncthreads();
    fill_tile(k, f.k, b, begin, key_end, h, s.D);
    fill_tile(v, f.v, b, begin, key_end, h, s.D);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPerWarp; ++i) {
      const int row = warp * kPerWarp + i;
      const int64_t t = first + row;
      T dscore = 0;
      if (t < s.T && begin + lane <= s.q_begin + t) {
        const T p = exp(dot(q[row], k[lane], s.D) * scale - f.lse.at(b, t)[h]);
        dscore = p * (dot(d_o[row], v[lane], s.D) - f.delta_BHT[blockIdx.y * s.T + t]) * scale;
      }
      add_weighted(acc[i], dscore, k, s.D);
    }
  }
#pragma unroll
  for (int i = 0; i < kPerWarp; ++i) {
    const int64_t t = first + warp * kPerWarp + i;
    if (t >= s.T) continue;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (lane + j * kWarp < s.D) f.dq.at(b, t, h)[lane + j * kWarp] = narrow<A>(acc[i][j]);
    }
  }
}

// dk and dv of 32 keys, from all queries that attend to them.
template <class A>
__global__ void __launch_bounds__(kThreads) key_gradient_kernel(AttentionBackwardViews<A> f) {
  using T = Acc<A>;
  extern __shared__ double shared[];
  T* memory = reinterpret_cast<T*>(shared);
  const AttentionSizes& s = f.size;
  const PlainTile<T> q = take_tile(memory, s.D), d_o = take_tile(memory, s.D);
  const PlainTile<T> k = take_tile(memory, s.D), v = take_tile(memory, s.D);
  const int64_t b = blockIdx.y / s.H, h = blockIdx.y % s.H, first = static_cast<int64_t>(blockIdx.x) * kTile;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T scale = static_cast<T>(s.scale);
  const int64_t key_end = s.q_begin + s.T, last = first + kTile < key_end ? first + kTile : key_end;
  fill_tile(k, f.k, b, first, last, h, s.D);
  fill_tile(v, f.v, b, first, last, h, s.D);
  T dk[kPerWarp][kColumns] = {}, dv[kPerWarp][kColumns] = {};
  const int64_t from = first > s.q_begin ? (first - s.q_begin) / kTile * kTile : 0;
  for (int64_t begin = from; begin < s.T; begin += kTile) {
    __syncthreads();
    fill_tile(q, f.q, b, begin, s.T, h, s.D);
    fill_tile(d_o, f.d_o, b, begin, s.T, h, s.D);
    __syncthreads();
    const int64_t t = begin + lane;
    const T lse = t < s.T ? f.lse.at(b, t)[h] : T(0), delta = t < s.T ? f.delta_BHT[blockIdx.y * s.T + t] : T(0);
#pragma unroll
    for (int i = 0; i < kPerWarp; ++i) {
      const int row = warp * kPerWarp + i;
      T p = 0, dscore = 0;
      if (t < s.T && first + row <= s.q_begin + t) {
        p = exp(dot(k[row], q[lane], s.D) * scale - lse);
        dscore = p * (dot(v[row], d_o[lane], s.D) - delta) * scale;
      }
      add_weighted(dv[i], p, d_o, s.D);
      add_weighted(dk[i], dscore, q, s.D);
    }
  }
#pragma unroll
  for (int i = 0; i < kPerWarp; ++i) {
    const int64_t key = first + warp * kPerWarp + i;
    if (key >= key_end) continue;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int c = lane + j * kWarp;
      if (c >= s.D) continue;
      A *dk_out = f.dk.at(b, key, h) + c, *dv_out = f.dv.at(b, key, h) + c;
      *dk_out = narrow<A>(widen(*dk_out) + dk[i][j]);
      *dv_out = narrow<A>(widen(*dv_out) + dv[i][j]);
    }
  }
}

template <class A>
size_t shared_bytes(const AttentionSizes& s, int tiles) {
  const size_t bytes = static_cast<size_t>(tiles) * plain_tile_bytes<Acc<A>>(s.D);
  check_block_memory(bytes, "attention: heads of ", s.D, " channels in ", name_of(DTypeOf<A>::value));
  return bytes;
}

Grid grid_of(const AttentionSizes& s, int64_t rows) { return {ceil_div(rows, kTile), s.B * s.H}; }

}  // namespace

template <class A>
void attention_forward_plain(cudaStream_t stream, const AttentionForwardViews<A>& f) {
  launch(stream, grid_of(f.size, f.size.T), kThreads, shared_bytes<A>(f.size, 3), forward_kernel<A>, f);
}

template <class A>
void attention_backward_plain(cudaStream_t stream, const AttentionBackwardViews<A>& f) {
  const size_t shared = shared_bytes<A>(f.size, 4);
  launch(stream, grid_of(f.size, f.size.T), kThreads, shared, query_gradient_kernel<A>, f);
  launch(stream, grid_of(f.size, f.size.keys()), kThreads, shared, key_gradient_kernel<A>, f);
}

template void attention_forward_plain(cudaStream_t, const AttentionForwardViews<bf16_t>&);
template void attention_forward_plain(cudaStream_t, const AttentionForwardViews<float>&);
template void attention_forward_plain(cudaStream_t, const AttentionForwardViews<double>&);
template void attention_backward_plain(cudaStream_t, const AttentionBackwardViews<bf16_t>&);
template void attention_backward_plain(cudaStream_t, const AttentionBackwardViews<float>&);
template void attention_backward_plain(cudaStream_t, const AttentionBackwardViews<double>&);

}  // namespace tmamba::cuda
