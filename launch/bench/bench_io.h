// Times the I/O of training: reading a batch from a token file, and writing a checkpoint.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "dist/world/world.h"
#include "kernels/ops/ops.h"
#include "launch/config/config.h"

namespace tmamba {

class StepBench;

// Milliseconds of the slowest rank: data_ms to read the batches of a step from a token file of random tokens, shard
// them and copy them to the device; checkpoint_stall_ms for which an asynchronous save blocks training; checkpoint_ms
// until that checkpoint is complete. Also checkpoint_bytes. Writes below `folder`, which all ranks must see, and
// removes the files. Collective; every rank returns the same. Throws Error if writing fails.
nlohmann::json bench_io(const RunConfig& config, World& world, Ops& ops, StepBench& bench, const std::string& folder);
// The directory below `folder` that bench_io writes to; killed ranks leave it behind.
std::filesystem::path bench_io_folder(const std::filesystem::path& folder);
// Formats the times as one line, with a newline.
std::string io_text(const nlohmann::json& io);

}  // namespace tmamba
