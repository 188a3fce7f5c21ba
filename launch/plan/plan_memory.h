// The memory of a planned run, rank by rank, as a run allocates it: found by dry runs, without ranks, device or memory.
#pragma once

#include <cstdint>

#include "launch/plan/run_plan.h"

namespace tmamba {

// Bytes on one rank.
struct RankMemory {
  int64_t parameters = 0, gradients = 0, optimizer = 0;
  int64_t saved = 0;    // activations that backward needs
  int64_t scratch = 0;  // temporaries and what is exchanged
  // Of the host, on a GPU beside the rest: the copy that a save is written from, and what ranks hand a writer through.
  int64_t host_copy = 0;
  int64_t activations() const { return saved + scratch; }
  // Without the host's.
  int64_t total() const { return parameters + gradients + optimizer + activations(); }
};

RankMemory rank_memory(const RunConfig& config, const RunPlan& plan, const MeshCoordinates& at);

// Of each kind the most that a rank has. Tensor-parallel rank 0, whose shards are the largest, stands for all.
RankMemory largest_memory(const RunConfig& config, const RunPlan& plan);

}  // namespace tmamba
