// The memory of a planned run, rank by rank, exactly as the run allocates it: measured by dry runs, without ranks,
// device or memory.
#pragma once

#include <cstdint>
#include <string>

#include "launch/plan/run_plan.h"

namespace tmamba {

// Bytes on one rank.
struct RankMemory {
  int64_t parameters = 0, gradients = 0, optimizer = 0;
  int64_t saved = 0;    // activations that backward needs
  int64_t scratch = 0;  // temporaries and what is exchanged
  // Host memory, also on a GPU: the copy that a checkpoint is written from, and buffers to send it to another writer.
  int64_t host_copy = 0;
  int64_t activations() const { return saved + scratch; }
  // Without host_copy.
  int64_t total() const { return parameters + gradients + optimizer + activations(); }
};

RankMemory rank_memory(const RunConfig& config, const RunPlan& plan, const MeshCoordinates& at);

// For each kind of memory, the maximum over the ranks. Only tensor-parallel rank 0 is measured: its shards are the
// largest.
RankMemory largest_memory(const RunConfig& config, const RunPlan& plan);

// What to set so that a run fits the machine, by the planner's prediction (dist/planner/plan_text.h).
std::string memory_advice(const RunConfig& config, const RunPlan& plan, const MachineModel& machine);

}  // namespace tmamba
