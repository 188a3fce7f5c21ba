// Embedding. The backward pass adds the rows of equal tokens in batch order: tokens are sorted by (token, position in
// the batch), which is a total order, and one block sums each run of equal tokens.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/views.h"
#include "kernels/cuda/cuda_ops.h"

namespace tmamba::cuda {

namespace {

constexpr int kThreads = 256;

template <class A>
__global__ void __launch_bounds__(kThreads) forward_kernel(Rows<A> y, Rows<const A> table, const int32_t* tokens,
                                                           int64_t C, int64_t V, int64_t vocab_begin, bool aligned16) {
  const int64_t n = blockIdx.x, row = tokens[n] - vocab_begin;
  const bool here = row >= 0 && row < V;
  for (int64_t c = threadIdx.x * kVec<A>; c < C; c += kThreads * kVec<A>) {
    const Raw<A> x = here ? load(table[row] + c, C - c, aligned16) : Raw<A>{};
    store(y[n] + c, x, C - c, aligned16);
  }
}

// --- Sorting ---

constexpr int kTile = 2048;  // keys sorted in shared memory by one block
constexpr int kSortThreads = kTile / 2;
constexpr uint32_t kNoRow = 0xFFFFFFFFu;

// Sorts tiles of keys: the high word is the table row, the low word the position in the batch. Tokens of other shards
// and the padding of the last tile come last.
__global__ void __launch_bounds__(kSortThreads)
    sort_tiles_kernel(uint64_t* keys, const int32_t* tokens, int64_t N, int64_t V, int64_t vocab_begin) {
  __shared__ uint64_t tile[kTile];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  for (int i = threadIdx.x; i < kTile; i += kSortThreads) {
    const int64_t n = begin + i, row = n < N ? tokens[n] - vocab_begin : -1;
    // Positions from N on are padding; they keep the keys distinct.
    const uint64_t high = row >= 0 && row < V ? static_cast<uint64_t>(row) : kNoRow;
    tile[i] = high << 32 | static_cast<uint64_t>(n);
  }
  // Bitonic sort.
  for (int size = 2; size <= kTile; size *= 2) {
    for (int distance = size / 2; distance > 0; distance /= 2) {
      __syncthreads();
      const int i = 2 * threadIdx.x - (threadIdx.x & (distance - 1)), j = i + distance;
      const bool up = (i & size) == 0;
      const uint64_t a = tile[i], b = tile[j];
      if ((a > b) == up) tile[i] = b, tile[j] = a;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTile; i += kSortThreads) keys[begin + i] = tile[i];
}

// Merges pairs of neighbouring sorted runs of `run` keys: a key's new index is its index in its own run plus the number
// of smaller keys in the other run.
__global__ void __launch_bounds__(kThreads)
    merge_kernel(uint64_t* out, const uint64_t* keys, int64_t count, int64_t run) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint64_t key = keys[i];
  const int64_t pair = i / (2 * run) * (2 * run), own = i - pair < run ? 0 : run, other = pair + (own == 0 ? run : 0);
  int64_t low = 0, high = count - other < run ? count - other : run;
  if (high < 0) high = 0;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[other + middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  out[i - own + low] = key;
}

// Returns the sorted keys of the tokens, in `keys` or `other`: two arrays of ceil(N / kTile) * kTile keys.
const uint64_t* sort_tokens(cudaStream_t stream, uint64_t* keys, uint64_t* other, const int32_t* tokens, int64_t N,
                            int64_t V, int64_t vocab_begin) {
  const int64_t count = round_up(N, kTile);
  launch(stream, {count / kTile}, kSortThreads, 0, sort_tiles_kernel, keys, tokens, N, V, vocab_begin);
  for (int64_t run = kTile; run < count; run *= 2) {
    launch(stream, {ceil_div(count, kThreads)}, kThreads, 0, merge_kernel, other, static_cast<const uint64_t*>(keys),
           count, run);
    std::swap(keys, other);
  }
  return keys;
}

// Block x sums the run of equal rows that begins at sorted index x, if one begins there.
template <class A>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Rows<Acc<A>> dtable, Rows<const A> dy, const uint64_t* keys, int64_t N, int64_t C, bool aligned16,
                    bool table_aligned16) {
  constexpr int V = kVec<A>, kAhead = 8;
  const int64_t begin = blockIdx.x;
  const uint32_t row = static_cast<uint32_t>(keys[begin] >> 32);
  if (row == kNoRow) return;
  if (begin > 0 && static_cast<uint32_t>(keys[begin - 1] >> 32) == row) return;
  for (int64_t c = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * V; c < C;
       c += gridDim.y * kThreads * V) {
    const int64_t left = C - c;
    Raw<Acc<A>, V> sum = load<Acc<A>, V>(dtable[row] + c, left, table_aligned16);
    for (int64_t i = begin; i < N; i += kAhead) {
      // Several rows are loaded before the first is added; rows after the run are skipped.
      Raw<A> x[kAhead];
      bool in[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        in[a] = i + a < N && static_cast<uint32_t>(keys[i + a] >> 32) == row;
        if (in[a]) x[a] = load(dy[static_cast<uint32_t>(keys[i + a])] + c, left, aligned16);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (!in[a]) continue;
#pragma unroll
        for (int e = 0; e < V; ++e) sum.v[e] += x[a][e];
      }
      if (!in[kAhead - 1]) break;
    }
    store<Acc<A>, V>(dtable[row] + c, sum, left, table_aligned16);
  }
}

}  // namespace

void CudaOps::embedding_forward(const EmbeddingForward& args) {
  const int64_t N = args.y_NC.size(0), C = args.y_NC.size(1), V = args.table_VC.size(0);
  check_args(Device::cuda, args);
  if (N * C == 0) return;
  const bool aligned16 = rows_aligned16({args.y_NC, args.table_VC});
  dispatch_activation(args.y_NC.dtype(), [&]<class A>() {
    launch(stream(), {N}, kThreads, 0, forward_kernel<A>, rows<A>(args.y_NC), rows<A>(args.table_VC),
           args.tokens_N.data<int32_t>(), C, V, args.vocab_begin, aligned16);
  });
}

void CudaOps::embedding_backward(const EmbeddingBackward& args) {
  const int64_t N = args.dy_NC.size(0), C = args.dy_NC.size(1), V = args.dtable_VC.size(0);
  check_args(Device::cuda, args);
  TM_CHECK(V < kNoRow && N < kNoRow, "embedding: ", V, " rows and ", N, " tokens; fewer than 2^32 are supported");
  if (N * C * V == 0) return;
  const int64_t count = round_up(N, kTile);
  uint64_t* keys = workspace_.take<uint64_t>(2 * count);
  const uint64_t* sorted =
      sort_tokens(stream(), keys, keys + count, args.tokens_N.data<int32_t>(), N, V, args.vocab_begin);
  dispatch_activation(args.dy_NC.dtype(), [&]<class A>() {
    // C is divided into vectors of dy (kVec<A> elements), also for dtable, whose elements are wider.
    const bool aligned16 = rows_aligned16({args.dy_NC}),
               table_aligned16 = rows_aligned16({args.dtable_VC}) && C % kVec<A> == 0;
    const Grid grid{N, std::min<int64_t>(ceil_div(C, kThreads * kVec<A>), 64)};
    launch(stream(), grid, kThreads, 0, backward_kernel<A>, rows<Acc<A>>(args.dtable_VC), rows<A>(args.dy_NC), sorted,
           N, C, aligned16, table_aligned16);
  });
}

}  // namespace tmamba::cuda
