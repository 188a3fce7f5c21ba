#include "launch/train/run_profile.h"

#include <nlohmann/json.hpp>

#include "launch/state/sharding.h"
#include "launch/train/op_profile.h"

namespace tmamba {

RunProfile::RunProfile(const RunResources& resources, TrainingStep& step, int64_t step_before)
    : resources_(resources), step_before_(step_before) {
  const RunConfig& config = resources.config;
  if (config.run.profile == Profile::ops) timed_ops_ = make_timed_ops(*resources.ops);
  if (config.run.profile != Profile::comm) return;
  const Plan plan = make_plan(resources.plan.dims, resources.plan.transports);
  const int64_t rows = step.ranks().batch() * step.ranks().local_tokens();
  comm_profile_ = std::make_unique<CommProfile>(
      *resources.mesh, *resources.all,
      planned_traffic(plan, reduction_buckets(step.table(), config.train.optimizer), *resources.mesh,
                      head_chunk_rows(rows, config.model.dim, config.model.vocab), TrainingStep::vote_bytes()));
}

void RunProfile::begin_step() {
  if (comm_profile_) comm_profile_->begin_step();
}

void RunProfile::end_step() {
  if (comm_profile_) comm_profile_->end_step();
}

void RunProfile::add_to(nlohmann::json& summary, int64_t step) const {
  const int64_t steps = step - step_before_;
  if (steps == 0) return;
  if (comm_profile_) summary["comm"] = comm_profile_->summary(resources_.world.comm());
  if (timed_ops_) summary["ops"] = op_rows(*timed_ops_, steps);
}

}  // namespace tmamba
