#include "kernels/base/strided.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/ops/op_checks.h"

namespace tmamba {

namespace {
// Channels that one task of the backward pass owns: it alone writes them, token by token in order.
constexpr int64_t kChannels = 64;
}  // namespace

void CpuOps::embedding_forward(Tensor y_NC, ConstTensor table_VC, ConstTensor tokens_N, int64_t vocab_begin) {
  const int64_t N = y_NC.size(0), C = y_NC.size(1), V = table_VC.size(0);
  check_embedding_forward(Device::cpu, y_NC, table_VC, tokens_N);
  if (N == 0) return;
  dispatch_float(y_NC.dtype(), [&]<class A>() {
    const auto y = rows<A>(y_NC);
    const auto table = rows<A>(table_VC);
    const int32_t* tokens = tokens_N.data<int32_t>();
    parallel_blocks(N, rows_per_block(C), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t row = tokens[n] - vocab_begin;
        if (row >= 0 && row < V) {
          std::copy_n(table[row], C, y[n]);
        } else {
          std::fill_n(y[n], C, A(0));
        }
      }
    });
  });
}

void CpuOps::embedding_backward(Tensor dtable_VC, ConstTensor dy_NC, ConstTensor tokens_N, int64_t vocab_begin) {
  const int64_t N = dy_NC.size(0), C = dy_NC.size(1), V = dtable_VC.size(0);
  check_embedding_backward(Device::cpu, dtable_VC, dy_NC, tokens_N);
  if (N == 0) return;
  dispatch_float(dy_NC.dtype(), [&]<class A>() {
    const auto dtable = rows<A>(dtable_VC);
    const auto dy = rows<A>(dy_NC);
    const int32_t* tokens = tokens_N.data<int32_t>();
    parallel_blocks(C, kChannels, [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < N; ++n) {
        const int64_t row = tokens[n] - vocab_begin;
        if (row < 0 || row >= V) continue;
        A* to = dtable[row];
        const A* from = dy[n];
        for (int64_t c = begin; c < end; ++c) to[c] += from[c];
      }
    });
  });
}

}  // namespace tmamba
