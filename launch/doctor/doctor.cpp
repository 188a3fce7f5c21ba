#include "launch/doctor/doctor.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>

#include "dist/world/device_world.h"
#include "dist/world/mpi_facts.h"
#include "kernels/base/device.h"
#include "launch/cli/format.h"
#include "launch/doctor/host_topology.h"

namespace tmamba {

namespace {

using nlohmann::json;

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

json gpu_facts(const std::vector<GpuIdentity>& gpus, int local_rank) {
  if (gpus.empty()) return nullptr;
  const GpuIdentity& gpu = gpus[static_cast<size_t>(gpu_of(local_rank, static_cast<int>(gpus.size())))];
  return {{"name", gpu.name},
          {"uuid", gpu.uuid},
          {"pci", gpu.pci},
          {"numa", numa_of_pci(gpu.pci)},
          {"pcie_gb_per_s", pcie_gb_per_s(gpu.pci)}};
}

json slurm_facts() {
  json facts = json::object();
  for (const char* name : {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"}) {
    if (const char* value = std::getenv(name)) facts[name] = value;
  }
  return facts;
}

// Ranks by host and by the resource that they share there.
using Sharing = std::map<std::pair<std::string, std::string>, std::vector<int>>;

Sharing sharing_of(const std::vector<json>& ranks, const auto& what) {
  Sharing sharing;
  for (const json& rank : ranks) {
    const std::string shared = what(rank);
    if (!shared.empty()) sharing[{rank.at("host"), shared}].push_back(rank.at("rank").get<int>());
  }
  std::erase_if(sharing, [](const auto& entry) { return entry.second.size() < 2; });
  return sharing;
}

std::string gpu_uuid(const json& rank) {
  return rank.at("gpu").is_null() ? "" : rank.at("gpu").at("uuid").get<std::string>();
}

// The cores that a rank is bound to; empty if it may run on any core of its host.
std::string bound_cores(const json& rank) {
  return rank.at("core_count").get<int>() < rank.at("host_cores").get<int>() ? rank.at("cores").get<std::string>() : "";
}

void find_shared_gpus(const std::vector<json>& ranks, std::vector<Finding>& findings) {
  for (const auto& [where, on_it] : sharing_of(ranks, gpu_uuid)) {
    findings.push_back(
        {true, str(where.first, ": ", ranks_text(on_it), " share one GPU, ", where.second,
                   "; start one rank per GPU, or make one GPU visible to each (srun --gpus-per-task=1)")});
  }
}

void find_shared_cores(const std::vector<json>& ranks, std::vector<Finding>& findings) {
  for (const auto& [where, on_them] : sharing_of(ranks, bound_cores)) {
    findings.push_back(
        {true, str(where.first, ": ", ranks_text(on_them), " are bound to the same cores, ", where.second,
                   "; bind each to its own (mpirun --map-by slot:PE=N --bind-to core, srun "
                   "--cpus-per-task=N --cpu-bind=cores)")});
  }
}

// Compares the ranks of each host with the cores that they may use together.
void find_crowding(const std::vector<json>& ranks, std::vector<Finding>& findings) {
  std::map<std::string, std::pair<int, std::set<int>>> hosts;
  for (const json& rank : ranks) {
    auto& [count, cores] = hosts[rank.at("host")];
    ++count;
    for (int core : numbers_in(rank.at("cores").get<std::string>())) cores.insert(core);
  }
  std::set<int> counts;
  for (const auto& [host, use] : hosts) {
    const auto cores = static_cast<int>(use.second.size());
    counts.insert(use.first);
    if (use.first > cores) {
      findings.push_back({true, str(host, ": ", use.first, " ranks have ", cores, cores == 1 ? " core" : " cores",
                                    " between them; start at most one rank per core, since waiting ranks slow "
                                    "the others down")});
    }
  }
  if (counts.size() > 1) {
    findings.push_back(
        {false, str("hosts have different numbers of ranks, from ", *counts.begin(), " to ", *counts.rbegin())});
  }
}

void find_distances(const std::vector<json>& ranks, std::vector<Finding>& findings) {
  std::vector<int> far;
  for (const json& rank : ranks) {
    if (rank.at("gpu").is_null() || rank.at("gpu").at("numa").get<int>() < 0 || bound_cores(rank).empty()) continue;
    const std::vector<int> own = numbers_in(rank.at("numa").get<std::string>());
    const int of_gpu = rank.at("gpu").at("numa").get<int>();
    if (!own.empty() && std::find(own.begin(), own.end(), of_gpu) == own.end())
      far.push_back(rank.at("rank").get<int>());
  }
  if (far.empty()) return;
  findings.push_back({false, str(ranks_text(far), far.size() == 1 ? " runs" : " run",
                                 " on cores of another NUMA node than the GPU's, which slows copies and launches; bind "
                                 "ranks to the cores of their GPU's node")});
}

void find_numbering(const std::vector<json>& ranks, std::vector<Finding>& findings) {
  std::vector<int> wrong;
  for (const json& rank : ranks) {
    // In an allocation mpirun starts one task per node, and its ranks inherit the task's variables: ignore those.
    const json& slurm = rank.at("slurm");
    if (slurm.value("SLURM_STEP_NUM_TASKS", "") != std::to_string(ranks.size())) continue;
    if (slurm.value("SLURM_PROCID", "") != std::to_string(rank.at("rank").get<int>())) {
      wrong.push_back(rank.at("rank").get<int>());
    }
  }
  if (wrong.empty()) return;
  findings.push_back({false, str("SLURM and MPI number ", ranks_text(wrong), " differently; MPI's numbers are used")});
}

// A cell of the table; a dash if empty.
std::string cell(const std::string& text) { return text.empty() ? "-" : text; }

std::string numa_cell(const json& rank) {
  std::string text = cell(rank.at("numa").get<std::string>());
  if (!rank.at("gpu").is_null() && rank.at("gpu").at("numa").get<int>() >= 0)
    text += str("/", rank.at("gpu").at("numa").get<int>());
  return text;
}

}  // namespace

json rank_facts(const World& world) {
  const std::vector<GpuIdentity> gpus = visible_gpus();
  const std::vector<int> cores = allowed_cores(), numa = numa_of_cores(cores);
  const json gpu = gpu_facts(gpus, world.local_rank());
  const std::vector<Nic> nics = nics_of_host();
  json nic_rows = json::array();
  for (const Nic& nic : nics) {
    nic_rows.push_back({{"name", nic.name}, {"kind", nic.kind}, {"state", nic.state}, {"numa", nic.numa}});
  }
  const int near = gpu.is_null() ? (numa.size() == 1 ? numa.front() : -1) : gpu.at("numa").get<int>();
  const std::string nic = nearest_nic(nics, gpu.is_null() ? "" : gpu.at("pci").get<std::string>(), near);
  const auto found = std::find_if(nics.begin(), nics.end(), [&](const Nic& one) { return one.name == nic; });
  return {{"rank", world.rank()},
          {"host", world.host()},
          {"local_rank", world.local_rank()},
          {"pid", ::getpid()},
          {"cores", ranges_text(cores)},
          {"core_count", cores.size()},
          {"host_cores", std::max<int>(host_cores(), static_cast<int>(cores.size()))},
          {"numa", ranges_text(numa)},
          {"gpu", gpu},
          {"visible_gpus", gpus.size()},
          {"nic", nic},
          {"nic_gbit_per_s", found == nics.end() ? 0 : found->gbit_per_s},
          {"nics", nic_rows},
          {"slurm", slurm_facts()}};
}

std::vector<Finding> placement_findings(const std::vector<json>& ranks, bool gpus) {
  std::vector<Finding> findings;
  if (gpus) {
    std::vector<int> without;
    for (const json& rank : ranks) {
      if (rank.at("gpu").is_null()) without.push_back(rank.at("rank").get<int>());
    }
    if (!without.empty())
      findings.push_back({true, str(ranks_text(without), without.size() == 1 ? " sees" : " see", " no GPU")});
    find_shared_gpus(ranks, findings);
    find_distances(ranks, findings);
  }
  find_shared_cores(ranks, findings);
  find_crowding(ranks, findings);
  find_numbering(ranks, findings);
  return findings;
}

std::string placement_table(const std::vector<json>& ranks) {
  std::set<int> shares_gpu, shares_cores;
  for (const auto& [where, who] : sharing_of(ranks, gpu_uuid)) shares_gpu.insert(who.begin(), who.end());
  for (const auto& [where, who] : sharing_of(ranks, bound_cores)) shares_cores.insert(who.begin(), who.end());
  std::vector<std::array<std::string, 6>> rows{{"rank", "host", "GPU", "cores", "NUMA", "NIC"}};
  for (const json& rank : ranks) {
    const int number = rank.at("rank");
    const bool gpu = !rank.at("gpu").is_null();
    rows.push_back({str(number), rank.at("host").get<std::string>(),
                    str(gpu ? gpu_uuid(rank) + " " + rank.at("gpu").at("pci").get<std::string>() : "-",
                        shares_gpu.contains(number) ? " !" : ""),
                    str(rank.at("cores").get<std::string>(), shares_cores.contains(number) ? " !" : ""),
                    numa_cell(rank), cell(rank.at("nic").get<std::string>())});
  }
  std::array<size_t, 6> widths{};
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string table;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) line += row[i] + std::string(widths[i] - row[i].size() + 2, ' ');
    table += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return table;
}

json rank_settings() {
  constexpr std::array kPrefixes{"OMPI_MCA_", "PMIX_MCA_", "UCX_",      "FI_",           "NCCL_",
                                 "MPICH_",    "OMP_",      "OPENBLAS_", "CUDA_VISIBLE_", "CUDA_DEVICE_"};
  constexpr std::array kInternal{"OMPI_MCA_ess",  "OMPI_MCA_orte_",     "OMPI_MCA_pmix", "OMPI_MCA_initial_wdir",
                                 "PMIX_MCA_mca_", "OMPI_MCA_shmem_RUN", "PMIX_MCA_psec"};
  json environment = json::object();
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    // Variables that Open MPI passes to its ranks are not settings of the user.
    const bool internal =
        std::any_of(kInternal.begin(), kInternal.end(), [&](const char* p) { return text.starts_with(p); });
    const bool wanted =
        std::any_of(kPrefixes.begin(), kPrefixes.end(), [&](const char* p) { return text.starts_with(p); });
    if (wanted && !internal) environment[text.substr(0, text.find('='))] = text.substr(text.find('=') + 1);
  }
  return {
      {"mpi", mpi_library()}, {"mpi_settings", mpi_settings()}, {"nccl", nccl_version()}, {"environment", environment}};
}

std::vector<Finding> settings_findings(const std::vector<json>& settings) {
  std::map<std::string, std::map<std::string, std::vector<int>>> values;
  for (size_t r = 0; r < settings.size(); ++r) {
    const json& of = settings[r];
    values["MPI library"][of.at("mpi")].push_back(static_cast<int>(r));
    values["NCCL"][of.at("nccl")].push_back(static_cast<int>(r));
    for (const char* group : {"mpi_settings", "environment"}) {
      for (const auto& [name, value] : of.at(group).items())
        values[name][text_of(value)].push_back(static_cast<int>(r));
    }
  }
  std::vector<Finding> findings;
  for (const auto& [name, by_value] : values) {
    size_t known = 0;
    std::string text;
    for (const auto& [value, on] : by_value) {
      known += on.size();
      text += str(text.empty() ? "" : "; ", cell(value), " on ", ranks_text(on));
    }
    // CUDA_VISIBLE_DEVICES differs on purpose: launchers give each rank its own GPUs.
    if (name == "CUDA_VISIBLE_DEVICES" || (by_value.size() == 1 && known == settings.size())) continue;
    findings.push_back(
        {by_value.size() > 1 && (name == "MPI library" || name == "NCCL"),
         str(name, " is not the same on all ranks: ", text, known < settings.size() ? "; not set on the others" : "")});
  }
  return findings;
}

}  // namespace tmamba
