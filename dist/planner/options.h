// Options of a run that the planner reads as its configuration sets them. The sections [parallel] and [train] of a
// configuration (launch/config/config.h) and PlanDims inherit them, and plans save them. A new one is a member and its
// visit() here, an entry in launch/config/config_keys.cpp, and the planner's code that reads it.
#pragma once

#include <cstdint>

#include "dist/planner/recompute.h"

namespace tmamba {

// Keys of [parallel].
struct ParallelOptions {
  int64_t zero = 1;  // stage of ZeroSharding
  bool operator==(const ParallelOptions&) const = default;
};

// Keys of [train].
struct ActivationOptions {
  Recompute recompute = Recompute::none;
  bool operator==(const ActivationOptions&) const = default;
};

// Calls visit(name in saved plans, key that sets it, field) for every option. Options: a class that inherits both.
template <class Options, class Visit>
void for_each_option(Options& options, Visit&& visit) {
  visit("zero", "parallel.zero", options.zero);
  visit("recompute", "train.recompute", options.recompute);
}

}  // namespace tmamba
