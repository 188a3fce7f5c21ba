#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"

namespace tmamba {

namespace {
// Channels that one task of the backward pass owns: it alone writes them, token by token in order.
constexpr int64_t kChannels = 64;
}  // namespace

void CpuOps::embedding_forward(const EmbeddingForward& args) {
  const int64_t N = args.y_NC.size(0), C = args.y_NC.size(1), V = args.table_VC.size(0);
  check_args(Device::cpu, args);
  if (N == 0) return;
  dispatch_float(args.y_NC.dtype(), [&]<class A>() {
    const auto y = rows<A>(args.y_NC);
    const auto table = rows<A>(args.table_VC);
    const int32_t* tokens = args.tokens_N.data<int32_t>();
    parallel_blocks(N, rows_per_block(C), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t row = tokens[n] - args.vocab_begin;
        if (row >= 0 && row < V) {
          std::copy_n(table[row], C, y[n]);
        } else {
          std::fill_n(y[n], C, A(0));
        }
      }
    });
  });
}

void CpuOps::embedding_backward(const EmbeddingBackward& args) {
  const int64_t N = args.dy_NC.size(0), C = args.dy_NC.size(1), V = args.dtable_VC.size(0);
  check_args(Device::cpu, args);
  if (N == 0) return;
  dispatch_float(args.dy_NC.dtype(), [&]<class A>() {
    const auto dtable = rows<A>(args.dtable_VC);
    const auto dy = rows<A>(args.dy_NC);
    const int32_t* tokens = args.tokens_N.data<int32_t>();
    parallel_blocks(C, kChannels, [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < N; ++n) {
        const int64_t row = tokens[n] - args.vocab_begin;
        if (row < 0 || row >= V) continue;
        A* to = dtable[row];
        const A* from = dy[n];
        for (int64_t c = begin; c < end; ++c) to[c] += from[c];
      }
    });
  });
}

}  // namespace tmamba
