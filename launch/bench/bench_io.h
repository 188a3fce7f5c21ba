// What a training step costs beyond computing and exchanging: its batch from a token file, and a checkpoint.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "dist/world/world.h"
#include "kernels/ops/ops.h"
#include "launch/config/config.h"

namespace tmamba {

class StepBench;

// Milliseconds, of the slowest rank: data_ms for the batches of a step read from a token file of random tokens, cut and
// copied to the device; checkpoint_stall_ms for which a save behind training keeps it waiting; checkpoint_ms until that
// checkpoint is whole; checkpoint_bytes. Writes below `folder`, which all ranks see, and removes it again. Collective;
// every rank gets the same. Throws Error where it cannot be written.
nlohmann::json bench_io(const RunConfig& config, World& world, Ops& ops, StepBench& bench, const std::string& folder);
// Where below `folder` it writes; ranks that were killed have left it.
std::filesystem::path bench_io_folder(const std::filesystem::path& folder);
// They as text, one line, ended.
std::string io_text(const nlohmann::json& io);

}  // namespace tmamba
