// Selects the kernels of a run's GEMMs: measured once per kind of GPU, then saved, because the selection determines the
// result's bits. It is saved in the run directory, so that the run resumes with it, and in the user's cache
// ($XDG_CACHE_HOME or ~/.cache, transmamba/) for other runs on the same kind of GPU. On devices without a selection
// (CPUs) nothing here has an effect.
#pragma once

#include <filesystem>
#include <functional>

#include "dist/comm/communicator.h"
#include "kernels/ops/ops.h"

namespace tmamba {

// Takes the choices of the run directory, then of the cache; those that are missing are measured in `warm_up`, which
// must run every op of a step once on every rank. Afterwards all ranks use the same choices, and rank 0 saves them in
// both places; a failed write is printed to stderr. Collective over `world`.
void settle_kernel_choices(Ops& ops, Communicator& world, const std::filesystem::path& run_directory,
                           const std::function<void()>& warm_up);

// Makes all ranks use the same choices: those of the lowest rank that has one. Collective.
void use_choices_of_all(Ops& ops, Communicator& world);

}  // namespace tmamba
