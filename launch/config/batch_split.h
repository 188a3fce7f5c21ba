// How the sequences of an optimizer step are split over data-parallel ranks and micro-batches.
#pragma once

#include <cstdint>

#include "launch/config/config.h"

namespace tmamba {

struct BatchSplit {
  int64_t dp = 1;             // data-parallel ranks
  int64_t micro_batch = 1;    // sequences of one forward and backward pass
  int64_t micro_batches = 1;  // of a rank in a step

  int64_t per_rank() const { return micro_batch * micro_batches; }
  int64_t sequences() const { return per_rank() * dp; }  // train.global_batch
  // Index in the step of the first sequence of micro-batch `micro` on data-parallel rank `dp_rank`.
  int64_t first_sequence(int64_t dp_rank, int64_t micro) const { return dp_rank * per_rank() + micro * micro_batch; }
};

// train.micro_batch = 0: one micro-batch. Throws UserError naming the key to change where the numbers do not divide, a
// micro-batch has more than kMostSequences, or a step more than kMostMicroBatches.
BatchSplit split_batch(const TrainConfig& train, int64_t dp);

// Of a micro-batch: what plans a step takes time in proportion to them.
inline constexpr int64_t kMostSequences = 1 << 16;
// Of a step, which a request to stop waits for.
inline constexpr int64_t kMostMicroBatches = 1 << 16;

}  // namespace tmamba
