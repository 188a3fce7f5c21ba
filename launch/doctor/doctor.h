// What `transmamba doctor` looks at: where every rank runs, what of that is wrong, and what the run folder's file
// system can do.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dist/world/world.h"

namespace tmamba {

struct Finding {
  bool problem = false;  // else a note
  std::string text;
};

// This rank: {rank, host, local_rank, pid, cores: "0-3", core_count, host_cores, numa: "0", gpu: {name, uuid, pci,
// numa} or null, visible_gpus, nic, nics: [{name, kind, state, numa}], slurm: {SLURM_PROCID: ..}}. The GPU is the one
// that training would take.
nlohmann::json rank_facts(const World& world);

// What is wrong with a placement, and what is worth knowing, from the facts of all ranks in rank order: two ranks on
// one GPU or bound to one set of cores, more ranks than cores for them, a GPU on another NUMA node than its rank's
// cores, SLURM and MPI that number ranks differently, hosts with different numbers of ranks or GPUs.
std::vector<Finding> placement_findings(const std::vector<nlohmann::json>& ranks, bool gpus);

// The table of ranks, every line ended. Ranks that share a GPU or a set of cores carry a mark.
std::string placement_table(const std::vector<nlohmann::json>& ranks);

// The settings that are in effect: {mpi, mpi_settings, nccl, environment}; of this rank.
nlohmann::json rank_settings();
// Settings that are not the same on all ranks.
std::vector<Finding> settings_findings(const std::vector<nlohmann::json>& settings);

// Probes of the file system of `folder`, which is made where it is missing: {path, type, free_bytes, free_inodes,
// fsync_ms, write_mb_per_s, rename_ms, visible_ms, locks}; findings go to `findings`. What it writes it removes.
// Collective; rank 0's result counts.
nlohmann::json probe_files(World& world, const std::filesystem::path& folder, std::vector<Finding>& findings);

}  // namespace tmamba
