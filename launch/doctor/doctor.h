// The checks of `transmamba doctor`: placement of the ranks, settings of MPI and NCCL, and the file system of the run
// directory.
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

// Facts about this rank: {rank, host, local_rank, pid, cores: "0-3", core_count, host_cores, numa: "0", gpu: {name,
// uuid, pci, numa} or null, visible_gpus, nic, nics: [{name, kind, state, numa}], slurm: {SLURM_PROCID: ..}}. The GPU
// is the one that training would use.
nlohmann::json rank_facts(const World& world);

// Checks the placement, from the facts of all ranks in rank order: several ranks on one GPU or bound to the same cores,
// more ranks than cores, a GPU on another NUMA node than its rank's cores, SLURM and MPI numbering ranks differently,
// hosts with different numbers of ranks.
std::vector<Finding> placement_findings(const std::vector<nlohmann::json>& ranks, bool gpus);

// The table of ranks; every line ends with a newline. "!" marks a shared GPU or set of cores.
std::string placement_table(const std::vector<nlohmann::json>& ranks);

// The settings in effect on this rank: {mpi, mpi_settings, nccl, environment}.
nlohmann::json rank_settings();
// Reports settings that differ between ranks.
std::vector<Finding> settings_findings(const std::vector<nlohmann::json>& settings);

// Gigabytes per second of a copy in memory by one thread of each rank, all at once; of the slowest. Collective.
double copy_gb_per_s(World& world);

// What was measured and found.
struct DoctorResults {
  const std::vector<nlohmann::json>& ranks;  // facts
  Device device = Device::cpu;               // that the sweep ran on
  std::vector<Finding> placement, settings, files_findings;
  nlohmann::json sweep, files;  // rows of sweep(); probe_files(), or null
  double copy_gb_per_s = 0;     // where the sweep ran on CPUs
};
// [{check, verdict, text}]: "ok", "slow" where the hardware should give more, "wrong" for a problem; "unknown" where
// the hardware does not state what it can give.
nlohmann::json verdicts(const DoctorResults& results);
// A line each, ending with a newline.
std::string verdicts_text(const nlohmann::json& rows);

// Probes the file system of `folder`, or of the directory that it would be made in: {path, type, free_bytes,
// free_inodes, fsync_ms, write_mb_per_s, rename_ms, visible_ms, locks}. Appends to `findings` and removes what it made.
// Collective; only rank 0's result is complete.
nlohmann::json probe_files(World& world, const std::filesystem::path& folder, std::vector<Finding>& findings);

}  // namespace tmamba
