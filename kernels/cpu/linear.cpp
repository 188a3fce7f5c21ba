// y = x w^T and its gradients: tiles of a fixed size, each one BLAS product on one thread.
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/partial_sums.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/views.h"

namespace tmamba {

namespace {

// Tiles of an output [rows, cols]; calls f(row_begin, row_count, col_begin, col_count).
template <class F>
void parallel_tiles(int64_t rows, int64_t cols, int64_t tile_rows, int64_t tile_cols, const F& f) {
  const int64_t across = ceil_div(cols, tile_cols);
  parallel_tasks(ceil_div(rows, tile_rows) * across, [&](int64_t tile) {
    const int64_t row = tile / across * tile_rows, col = tile % across * tile_cols;
    f(row, std::min(tile_rows, rows - row), col, std::min(tile_cols, cols - col));
  });
}

constexpr int64_t kTileRows = 256, kTileCols = 1024;
constexpr int64_t kWeightTile = 256;
// Weights of fewer elements than a tile sum over blocks of this many rows of the batch in parallel.
constexpr int64_t kBatchBlock = 1024;

template <class A>
void weight_gradient(Rows<A> dw, Rows<const A> dy, Rows<const A> x, int64_t N, int64_t O, int64_t I) {
  parallel_tiles(O, I, kWeightTile, kWeightTile, [&](int64_t o, int64_t o_count, int64_t i, int64_t i_count) {
    gemm(o_count, i_count, N, 1.0, transposed(dy.data + o, dy.stride), {x.data + i, x.stride}, 1.0, dw[o] + i,
         dw.stride);
  });
}

// The same for a weight too small to be split: partial sums over blocks of rows, added in order.
template <class A>
void small_weight_gradient(Rows<A> dw, Rows<const A> dy, Rows<const A> x, int64_t N, int64_t O, int64_t I) {
  const int64_t blocks = ceil_div(N, kBatchBlock);
  ScratchFrame frame;
  A* partial = frame.take<A>(blocks * O * I);
  parallel_tasks(blocks, [&](int64_t block) {
    const int64_t n = block * kBatchBlock;
    gemm(O, I, std::min(kBatchBlock, N - n), 1.0, transposed(dy[n], dy.stride), {x[n], x.stride}, 0.0,
         partial + block * O * I, I);
  });
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t o = 0; o < O; ++o) {
      const A* from = partial + (block * O + o) * I;
      for (int64_t i = 0; i < I; ++i) dw[o][i] += from[i];
    }
  }
}

}  // namespace

void CpuOps::linear_forward(Tensor y_NO, ConstTensor x_NI, ConstTensor w_OI) {
  const int64_t N = x_NI.size(0), I = x_NI.size(1), O = w_OI.size(0);
  const DType dtype = x_NI.dtype();
  expect(y_NO, "linear y_NO", dtype, {N, O});
  expect(x_NI, "linear x_NI", dtype, {N, I});
  expect(w_OI, "linear w_OI", dtype, {O, I});
  dispatch_float(dtype, [&]<class A>() {
    const auto y = rows<A>(y_NO);
    const auto x = rows<A>(x_NI), w = rows<A>(w_OI);
    parallel_tiles(N, O, kTileRows, kTileCols, [&](int64_t n, int64_t n_count, int64_t o, int64_t o_count) {
      gemm(n_count, o_count, I, 1.0, {x[n], x.stride}, transposed(w[o], w.stride), 0.0, y[n] + o, y.stride);
    });
  });
}

void CpuOps::linear_backward_input(Tensor dx_NI, ConstTensor dy_NO, ConstTensor w_OI, bool accumulate) {
  const int64_t N = dy_NO.size(0), O = dy_NO.size(1), I = w_OI.size(1);
  const DType dtype = dy_NO.dtype();
  expect(dx_NI, "linear dx_NI", dtype, {N, I});
  expect(dy_NO, "linear dy_NO", dtype, {N, O});
  expect(w_OI, "linear w_OI", dtype, {O, I});
  dispatch_float(dtype, [&]<class A>() {
    const auto dx = rows<A>(dx_NI);
    const auto dy = rows<A>(dy_NO), w = rows<A>(w_OI);
    parallel_tiles(N, I, kTileRows, kTileCols, [&](int64_t n, int64_t n_count, int64_t i, int64_t i_count) {
      gemm(n_count, i_count, O, 1.0, {dy[n], dy.stride}, {w.data + i, w.stride}, accumulate ? 1.0 : 0.0, dx[n] + i,
           dx.stride);
    });
  });
}

void CpuOps::linear_backward_weight(Tensor dw_OI, ConstTensor dy_NO, ConstTensor x_NI) {
  const int64_t N = dy_NO.size(0), O = dy_NO.size(1), I = x_NI.size(1);
  const DType dtype = dy_NO.dtype();
  expect(dw_OI, "linear dw_OI", accumulate_type(dtype), {O, I});
  expect(dy_NO, "linear dy_NO", dtype, {N, O});
  expect(x_NI, "linear x_NI", dtype, {N, I});
  if (N == 0) return;
  dispatch_float(dtype, [&]<class A>() {
    if (O * I < kWeightTile * kWeightTile && N > kBatchBlock) {
      small_weight_gradient(rows<A>(dw_OI), rows<A>(dy_NO), rows<A>(x_NI), N, O, I);
    } else {
      weight_gradient(rows<A>(dw_OI), rows<A>(dy_NO), rows<A>(x_NI), N, O, I);
    }
  });
}

}  // namespace tmamba
