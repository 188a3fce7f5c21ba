// Predicts what Communicator::traffic() of each axis of the mesh counts in a training step: for the sequence axis from
// the plan, for the others from the model's sizes. run.profile = "comm" compares it with what the run counts.
#pragma once

#include <span>

#include "dist/comm/communicator.h"
#include "dist/planner/plan.h"
#include "dist/world/mesh.h"
#include "dist/zero/ownership.h"

namespace tmamba {

TrafficCounter& operator+=(TrafficCounter& a, const TrafficCounter& b);
TrafficCounter operator-(TrafficCounter a, const TrafficCounter& b);
// The traffic of `times` passes.
TrafficCounter operator*(int64_t times, TrafficCounter a);

// Traffic of rank `rank` of the sequence axis in the exchanges of one micro-batch.
TrafficCounter sequence_traffic(const Plan& plan, int rank);

// Traffic of rank `rank` of the tensor axis in the layers, embedding and head of one micro-batch. `rows`: tokens of its
// sequences that the group holds together. `loss_rows`: rows whose logits the head computes at a time.
TrafficCounter tensor_traffic(const PlanDims& dims, int64_t rows, int64_t loss_rows, int rank);

// Traffic of one rank on the zero axis and on the tensor axis when the gradients of `buckets` are summed once
// (GradReducer).
struct GradientTraffic {
  TrafficCounter zero, tp;
};
GradientTraffic reduction_traffic(const PlanDims& dims, std::span<const Bucket> buckets, int zero_rank);
// Traffic of one rank on the zero axis when the updated parameters are gathered.
TrafficCounter parameter_traffic(const PlanDims& dims, std::span<const Bucket> buckets, int zero_rank);

// How often gradients are summed in a step: once, or with ZeRO-2 after every micro-batch.
int64_t reductions(const PlanDims& dims);

// One all_reduce of `bytes` among `ranks` ranks.
TrafficCounter all_reduce_traffic(int64_t bytes, int64_t ranks);

}  // namespace tmamba
