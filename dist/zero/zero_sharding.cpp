#include "dist/zero/zero_sharding.h"

namespace tmamba {

std::string ZeroSharding::stage_problem(int64_t stage) {
  if (0 <= stage && stage <= kMaxStage) return {};
  return str("parallel.zero = ", stage, " must be 0, 1 or ", kMaxStage);
}

ZeroSharding::ZeroSharding(int64_t stage, int64_t replicas) : stage_(replicas == 1 ? 0 : stage), replicas_(replicas) {
  if (const std::string problem = stage_problem(stage); !problem.empty()) throw UserError(problem);
}

std::vector<Slice> ZeroSharding::slices(const Bucket& bucket) const {
  if (shards_optimizer()) return split_bucket(bucket, static_cast<int>(replicas_));
  return std::vector<Slice>(static_cast<size_t>(replicas_), range_of(bucket));
}

Slice ZeroSharding::slice(const Bucket& bucket, int zero_rank) const {
  return slices(bucket)[static_cast<size_t>(zero_rank)];
}

std::vector<OwnedRowBlock> ZeroSharding::owned(const Bucket& bucket, int zero_rank) const {
  return rows_in(bucket, slice(bucket, zero_rank));
}

int64_t ZeroSharding::extra_gradient_elements(const Bucket& bucket, int zero_rank) const {
  return shards_gradients() ? 2 * slice(bucket, zero_rank).count : 0;
}

}  // namespace tmamba
