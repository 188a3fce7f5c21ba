// The language-model head: logits, cross-entropy and, in the same pass, their gradients. Rows are processed in chunks,
// so the logits of all tokens never exist together. Under tensor parallelism each rank computes the logits of its shard
// of the vocabulary, and ranks combine three scalars per row. N rows, C model width, V vocabulary.
#pragma once

#include "dist/sequence/exchange.h"
#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"

namespace tmamba {

// Scalars on the device of the model that forward passes add losses to.
struct LossSums {
  Tensor loss_1;   // float64, sum of -log p(target) in nats over counted targets
  Tensor count_1;  // float64, the number of counted targets
  Tensor loss_N;   // [acc] the loss of every row, overwritten; may be empty
};

struct HeadLoss {
  ConstTensor x_NC;  // normed outputs of the last layer
  ConstTensor head_VC;
  int64_t vocab = 0;        // rows of the head, all shards
  int64_t vocab_begin = 0;  // of this rank's shard
  ConstTensor targets_N;    // int32; negative: not counted
  int64_t unit = 0;         // rows per chunk; 0: head_chunk_rows()
  Tensor dx_NC;             // overwritten, this rank's summand; empty: no gradients at all
  Tensor dhead_VC;          // [acc] added
  double grad_scale = 0;    // gradients are those of loss sum * grad_scale
};

// Rows of a chunk, whose logits exist together, of `rows` rows of `width`.
int64_t head_chunk_rows(int64_t rows, int64_t width, int64_t vocab);

void head_loss(Ops& ops, Arena& scratch, TensorExchange& tensor, const HeadLoss& args, const LossSums& sums);

}  // namespace tmamba
