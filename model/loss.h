// The language-model head: logits, cross-entropy and, in the same pass, their gradients. Rows are taken in chunks, so
// the logits of all tokens never exist together. Under tensor parallelism each rank has the logits of its part of the
// vocabulary alone, and ranks combine three numbers per row. N rows, C model width, V vocabulary.
#pragma once

#include "dist/sequence/exchange.h"
#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"

namespace tmamba {

// Where a model's losses go: host-or-device scalars that forward passes add to.
struct LossSums {
  Tensor loss_1;   // float64, sum of -log p(target) in nats over counted targets
  Tensor count_1;  // float64, how many were counted
  Tensor loss_N;   // [acc] the loss of every row, written over; may be empty
};

struct HeadLoss {
  ConstTensor x_NC;  // normed outputs of the last layer
  ConstTensor head_VC;
  int64_t vocab = 0;        // rows of the head, all parts
  int64_t vocab_begin = 0;  // of this rank's part
  ConstTensor targets_N;    // int32; negative: not counted
  int64_t unit = 0;         // rows per chunk; 0: as many as memory allows
  Tensor dx_NC;             // written over, this rank's summand; empty: no gradients at all
  Tensor dhead_VC;          // [acc] added
  double grad_scale = 0;    // gradients are those of loss sum * grad_scale
};

// Rows whose logits exist together, of `rows` rows of `width`.
int64_t head_chunk_rows(int64_t rows, int64_t width, int64_t vocab);

void head_loss(Ops& ops, Arena& scratch, TensorExchange& tensor, const HeadLoss& args, const LossSums& sums);

}  // namespace tmamba
