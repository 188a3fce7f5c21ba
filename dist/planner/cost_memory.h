// Memory of a rank in closed form: what the model keeps of a layer for backward, and what it takes for the time of a
// pass. The terms are the tensors of model/transmamba, mixer and sequence_mixer; tests/launch/plan/memory_test.cpp
// holds the sums within 5 % of what dry runs of those find.
#pragma once

#include "dist/planner/cost_work.h"
#include "dist/planner/plan.h"

namespace tmamba {

// Bytes of one rank; those that tensor-parallel ranks divide among them, and those that each has whole.
struct SplitBytes {
  double divided = 0, whole = 0;
  double on(int tp) const { return divided / tp + whole; }
  SplitBytes& operator+=(const SplitBytes& other) {
    divided += other.divided, whole += other.whole;
    return *this;
  }
};

// The activations of one layer (model/allocation_plan.h): kept for backward, and what backward computes again of mixer
// and MLP, which shares its place with other layers.
struct LayerBytes {
  SplitBytes kept, mixer, mlp;
  // Of the shared place: both halves at once at Recompute::all, else one after the other.
  double shared(Recompute level, int tp) const;
};
// `dims`: with tp = 1.
LayerBytes layer_bytes(const PlanDims& dims, const RankWork& work, const Transport& transport, int64_t transpoint);
// Kept of the residual stream and its norm behind the last layer.
SplitBytes kept_behind_layers(const PlanDims& dims, int64_t tokens);

// Taken during the backward pass of a layer's mixer, exchanges included. `dims`: with tp = 1.
double mixer_scratch_bytes(const PlanDims& dims, const RankWork& work, const RankTraffic& traffic,
                           const Transport& transport, int64_t transpoint);
// Most that is taken at a time: by the slowest of mixers, MLPs and head, beside the gradient of the residual stream.
double scratch_bytes(const PlanDims& dims, int64_t tokens, double mixer_scratch);

}  // namespace tmamba
