#include "launch/config/batch_split.h"

#include "kernels/base/check.h"

namespace tmamba {

BatchSplit split_batch(const TrainConfig& train, int64_t dp) {
  if (train.global_batch % dp != 0) {
    throw UserError(
        str("train.global_batch = ", train.global_batch, " is not divisible by the ", dp, " data-parallel ranks"));
  }
  const int64_t per_rank = train.global_batch / dp;
  const int64_t micro_batch = train.micro_batch > 0 ? train.micro_batch : per_rank;
  if (per_rank % micro_batch != 0) {
    throw UserError(str("train.micro_batch = ", micro_batch, " does not divide the ", per_rank,
                        " sequences of each of ", dp, " data-parallel ranks (train.global_batch = ", train.global_batch,
                        ")"));
  }
  if (micro_batch > kMostSequences) {
    throw UserError(str("a rank would run ", micro_batch,
                        " sequences in one pass (train.global_batch = ", train.global_batch, " over ", dp,
                        " data-parallel ranks, train.micro_batch = ", train.micro_batch, "); at most ", kMostSequences,
                        " are possible: set train.micro_batch"));
  }
  if (per_rank / micro_batch > kMostMicroBatches) {
    throw UserError(str("a step would be ", per_rank / micro_batch, " passes of each rank (train.global_batch = ",
                        train.global_batch, " over ", dp, " data-parallel ranks, train.micro_batch = ", micro_batch,
                        "), and a run can be stopped between steps only; at most ", kMostMicroBatches,
                        " are possible: raise train.micro_batch or lower train.global_batch"));
  }
  return {.dp = dp, .micro_batch = micro_batch, .micro_batches = per_rank / micro_batch};
}

}  // namespace tmamba
