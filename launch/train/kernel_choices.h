// Which kernels a run's matrix products use: measured once for a kind of GPU, then kept, because the choice fixes the
// bits. Choices lie in the run folder, for that run to resume with the same ones, and in the user's cache folder
// ($XDG_CACHE_HOME or ~/.cache, transmamba/), for other runs on such a machine. Devices without choices (CPUs) have no
// files, and nothing here does anything for them.
#pragma once

#include <filesystem>
#include <functional>

#include "dist/comm/communicator.h"
#include "kernels/ops/ops.h"

namespace tmamba {

// Takes the choices of the run folder, else of the cache; those missing are measured in `rehearsal`, which must run
// every op of a step once on every rank. Then all ranks use the same ones, and rank 0 keeps them in both places; a
// folder that cannot be written to is said on stderr. Collective over `world`.
void settle_kernel_choices(Ops& ops, Communicator& world, const std::filesystem::path& run_folder,
                           const std::function<void()>& rehearsal);

// The choices of several ranks as all will use them: rank 0's, and of what it has not chosen, the next rank's.
void use_choices_of_all(Ops& ops, Communicator& world);

}  // namespace tmamba
