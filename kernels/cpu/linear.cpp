// y = x w^T and its gradients: tiles of a fixed size, each one BLAS product on one thread.
#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

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
// A weight of few tiles is summed over parts of the batch side by side: enough for about this many tasks, but of at
// least kBatchPart rows.
constexpr int64_t kTasks = 16, kBatchPart = 512;

// dw += dy^T x over the rows [n, n + count).
template <class A>
struct WeightTile {
  Rows<const A> dy, x;
  void run(A* dw, int64_t dw_stride, double keep, int64_t n, int64_t n_count, int64_t o, int64_t o_count, int64_t i,
           int64_t i_count) const {
    gemm(o_count, i_count, n_count, 1.0, transposed(dy[n] + o, dy.stride), {x[n] + i, x.stride}, keep, dw, dw_stride);
  }
};

template <class A>
void weight_gradient(Rows<A> dw, Rows<const A> dy, Rows<const A> x, int64_t N, int64_t O, int64_t I) {
  const WeightTile<A> tile{dy, x};
  const int64_t tiles = ceil_div(O, kWeightTile) * ceil_div(I, kWeightTile);
  const int64_t parts = std::clamp<int64_t>(N / kBatchPart, 1, ceil_div(kTasks, tiles));
  if (parts == 1) {
    parallel_tiles(O, I, kWeightTile, kWeightTile, [&](int64_t o, int64_t o_count, int64_t i, int64_t i_count) {
      tile.run(dw[o] + i, dw.stride, 1.0, 0, N, o, o_count, i, i_count);
    });
    return;
  }
  ScratchFrame frame;
  A* sums = frame.take<A>(parts * O * I);
  const int64_t rows = ceil_div(N, parts);
  parallel_tiles(parts * O, I, O, kWeightTile, [&](int64_t row, int64_t, int64_t i, int64_t i_count) {
    const int64_t n = row / O * rows, n_count = std::clamp<int64_t>(N - n, 0, rows);
    for (int64_t o = 0; o < O; o += kWeightTile) {
      const int64_t o_count = std::min(kWeightTile, O - o);
      tile.run(sums + (row + o) * I + i, I, 0.0, n, n_count, o, o_count, i, i_count);
    }
  });
  parallel_blocks(O, rows_per_block(I), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      A* to = dw[o];
      for (int64_t part = 0; part < parts; ++part) {
        const A* from = sums + (part * O + o) * I;
        for (int64_t i = 0; i < I; ++i) to[i] += from[i];
      }
    }
  });
}

}  // namespace

void CpuOps::linear_forward(const LinearForward& args) {
  const int64_t N = args.x_NI.size(0), I = args.x_NI.size(1), O = args.w_OI.size(0);
  check_args(Device::cpu, args);
  dispatch_float(args.x_NI.dtype(), [&]<class A>() {
    const auto y = rows<A>(args.y_NO);
    const auto x = rows<A>(args.x_NI), w = rows<A>(args.w_OI);
    parallel_tiles(N, O, kTileRows, kTileCols, [&](int64_t n, int64_t n_count, int64_t o, int64_t o_count) {
      gemm(n_count, o_count, I, 1.0, {x[n], x.stride}, transposed(w[o], w.stride), 0.0, y[n] + o, y.stride);
    });
  });
}

void CpuOps::linear_backward_input(const LinearBackwardInput& args) {
  const int64_t N = args.dy_NO.size(0), O = args.dy_NO.size(1), I = args.w_OI.size(1);
  check_args(Device::cpu, args);
  dispatch_float(args.dy_NO.dtype(), [&]<class A>() {
    const auto dx = rows<A>(args.dx_NI);
    const auto dy = rows<A>(args.dy_NO), w = rows<A>(args.w_OI);
    parallel_tiles(N, I, kTileRows, kTileCols, [&](int64_t n, int64_t n_count, int64_t i, int64_t i_count) {
      gemm(n_count, i_count, O, 1.0, {dy[n], dy.stride}, {w.data + i, w.stride}, args.accumulate ? 1.0 : 0.0, dx[n] + i,
           dx.stride);
    });
  });
}

void CpuOps::linear_backward_weight(const LinearBackwardWeight& args) {
  const int64_t N = args.dy_NO.size(0), O = args.dy_NO.size(1), I = args.x_NI.size(1);
  check_args(Device::cpu, args);
  if (N == 0) return;
  dispatch_float(args.dy_NO.dtype(), [&]<class A>() {
    weight_gradient(rows<A>(args.dw_OI), rows<A>(args.dy_NO), rows<A>(args.x_NI), N, O, I);
  });
}

}  // namespace tmamba
