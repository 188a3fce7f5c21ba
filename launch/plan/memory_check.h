// Before a run allocates anything: will it fit?
#pragma once

#include "dist/world/world.h"
#include "launch/plan/run_plan.h"

namespace tmamba {

// Throws UserError on all ranks, with the same message, where a rank needs more memory than run.memory_limit or, where
// that is 0, than its device has free (a host's is shared by the ranks on it): the bytes needed, free and short of the
// rank that lacks most, and the setting that would make it fit. Collective over the world.
void require_memory(const RunConfig& config, const RunPlan& plan, Device device, World& world);

}  // namespace tmamba
