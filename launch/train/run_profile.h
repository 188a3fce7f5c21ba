// class RunProfile: what run.profile measures of the steps of an attempt: the time of every op ("ops"), or calls and
// bytes between ranks beside the plan's ("comm").
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "kernels/ops/timed_ops.h"
#include "launch/train/comm_profile.h"
#include "launch/train/run_resources.h"
#include "launch/train/training_step.h"

namespace tmamba {

class RunProfile {
 public:
  // The first step is the one after `step_before`.
  RunProfile(const RunResources& resources, TrainingStep& step, int64_t step_before);

  // The ops that steps run on.
  Ops& ops() { return timed_ops_ ? *timed_ops_ : *resources_.ops; }
  // Traffic between the two is the step's.
  void begin_step();
  void end_step();

  // Adds "comm" or "ops", per step, to a run's summary. Collective where run.profile = "comm".
  void add_to(nlohmann::json& summary, int64_t step) const;

 private:
  const RunResources& resources_;
  const int64_t step_before_;
  std::unique_ptr<TimedOps> timed_ops_;        // null unless run.profile = "ops"
  std::unique_ptr<CommProfile> comm_profile_;  // null unless run.profile = "comm"
};

}  // namespace tmamba
