// Checks that a run fits before it allocates anything.
#pragma once

#include "dist/world/world.h"
#include "launch/plan/run_plan.h"

namespace tmamba {

// Throws UserError on all ranks, with the same message, if a rank needs more memory than run.memory_limit or, if that
// is 0, than its device has free (ranks on a host share its memory). The message gives the bytes needed, free and
// missing of the rank that lacks most, and a setting that makes it fit. Collective over the world.
void require_memory(const RunConfig& config, const RunPlan& plan, Device device, World& world);

}  // namespace tmamba
