#include "model/loss.h"

#include <algorithm>

namespace tmamba {

namespace {

// Combines the statistics of all shards of the vocabulary.
void combine_shards(Ops& ops, TensorExchange& tensor, const Tensor& max_n, const Tensor& local_max_n,
                    const Tensor& sum_exp_n, const Tensor& target_n) {
  if (tensor.size() == 1) return;
  ops.copy({local_max_n, max_n});
  tensor.all_max(max_n);
  ops.cross_entropy_rescale({.sum_exp_N = sum_exp_n, .max_N = local_max_n, .global_max_N = max_n});
  tensor.all_sum(sum_exp_n);
  tensor.all_sum(target_n);
}

}  // namespace

// Each chunk reads and writes the gradient of the whole head, so chunks should be large. Logits of up to 8 C elements
// for each of the N rows do not raise the peak of memory, since the backward pass of a layer takes as much. The size
// follows from the whole vocabulary, since shards may differ by one row and all ranks must process the same chunks.
int64_t head_chunk_rows(int64_t rows, int64_t width, int64_t vocab) {
  return std::max<int64_t>(64, round_up(ceil_div(8 * width * rows, vocab), 64));
}

void head_loss(Ops& ops, Arena& scratch, TensorExchange& tensor, const HeadLoss& args, const LossSums& sums) {
  const size_t mark = scratch.used();
  const int64_t N = args.x_NC.size(0), V = args.head_VC.size(0);
  const int64_t chunk = std::min(N, args.unit > 0 ? args.unit : head_chunk_rows(N, args.x_NC.size(1), args.vocab));
  const DType acc = accumulate_type(args.x_NC.dtype());
  const Tensor logits = scratch.take({chunk, V}, args.x_NC.dtype());
  const Tensor max = scratch.take({chunk}, acc), sum_exp = scratch.take({chunk}, acc),
               target = scratch.take({chunk}, acc);
  const Tensor local_max = tensor.size() > 1 ? scratch.take({chunk}, acc) : max;
  for (int64_t begin = 0; begin < N; begin += chunk) {
    const int64_t n = std::min(chunk, N - begin);
    const Tensor logits_nV = logits.slice(0, 0, n);
    const Tensor max_n = max.slice(0, 0, n), sum_exp_n = sum_exp.slice(0, 0, n), target_n = target.slice(0, 0, n);
    const ConstTensor x_nC = args.x_NC.slice(0, begin, n), targets_n = args.targets_N.slice(0, begin, n);
    ops.linear_forward({.y_NO = logits_nV, .x_NI = x_nC, .w_OI = args.head_VC});
    ops.cross_entropy_stats({.max_N = max_n,
                             .sum_exp_N = sum_exp_n,
                             .target_N = target_n,
                             .logits_NV = logits_nV,
                             .targets_N = targets_n,
                             .vocab_begin = args.vocab_begin});
    combine_shards(ops, tensor, max_n, local_max.slice(0, 0, n), sum_exp_n, target_n);
    const Tensor loss_n = sums.loss_N.dims() == 0 ? Tensor() : sums.loss_N.slice(0, begin, n);
    ops.cross_entropy_loss({.loss_sum_1 = sums.loss_1,
                            .count_1 = sums.count_1,
                            .loss_N = loss_n,
                            .max_N = max_n,
                            .sum_exp_N = sum_exp_n,
                            .target_N = target_n,
                            .targets_N = targets_n});
    if (args.dx_NC.dims() == 0) continue;
    ops.cross_entropy_gradient({.logits_NV = logits_nV,
                                .max_N = max_n,
                                .sum_exp_N = sum_exp_n,
                                .targets_N = targets_n,
                                .vocab_begin = args.vocab_begin,
                                .scale = args.grad_scale});
    ops.linear_backward_input(
        {.dx_NI = args.dx_NC.slice(0, begin, n), .dy_NO = logits_nV, .w_OI = args.head_VC, .accumulate = false});
    ops.linear_backward_weight({.dw_OI = args.dhead_VC, .dy_NO = logits_nV, .x_NI = x_nC});
  }
  scratch.rewind(mark);
}

}  // namespace tmamba
