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
  return {.dp = dp, .micro_batch = micro_batch, .micro_batches = per_rank / micro_batch};
}

int64_t total_steps(const RunConfig& config) {
  const int64_t step_tokens = config.train.global_batch * config.data.seq_len;
  return config.train.steps > 0 ? config.train.steps : ceil_div(config.train.tokens, step_tokens);
}

}  // namespace tmamba
