// The description of a cluster (cluster/site.env), read by the job scripts and by `transmamba submit`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tmamba {

// One member per SITE_ variable; cluster/site.env documents each.
struct Site {
  std::string partition, account, qos, constraint;
  int64_t gpus_per_node = 0;
  std::string gpu_option = "gpus-per-node";  // or gres
  std::string gpu_type;
  int64_t ranks_per_node = 0;  // 0: one per GPU, or one on nodes without GPUs
  int64_t cpus_per_rank = 0;   // 0: SLURM's default
  std::string time;
  int64_t signal_seconds = 180;
  std::string launcher = "srun";  // or mpirun
  std::string mpi = "pmix";
  std::string interface;
  std::string requeue = "auto";  // self or never
  int64_t restarts = 20;
  std::string setup;
  std::vector<std::string> container;
  std::string program;
  std::vector<std::string> sbatch_options;

  // Ranks per node unless the command line sets them.
  int64_t default_ranks() const { return ranks_per_node > 0 ? ranks_per_node : gpus_per_node > 0 ? gpus_per_node : 1; }
};

// Parses lines NAME=value as a shell would: a value is one bare word, or is in single or double quotes without anything
// that a shell would expand. Throws UserError naming file and line for anything else.
Site parse_site(const std::string& text, const std::string& name);
Site read_site(const std::filesystem::path& file);

// Returns `named`, or the value of TRANSMAMBA_SITE if it is empty; "" if neither is set.
std::string site_file(const std::string& named);
// Reads `file`; without a file returns SLURM's defaults.
Site site_of(const std::string& file);

// The command with which a rank starts this program on the site's nodes: in its container, at its path there, or the
// path of this executable.
std::vector<std::string> rank_program(const Site& site);
// srun and the options that every launch of ranks needs; cluster/job.sh uses the same.
std::vector<std::string> srun_words(const Site& site);

}  // namespace tmamba
