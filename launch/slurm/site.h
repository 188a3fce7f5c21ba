// What a cluster is like, for its job scripts: cluster/site.env, read by them and by `transmamba submit`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tmamba {

// One member per SITE_ variable; cluster/site.env says what each means.
struct Site {
  std::string partition, account, qos, constraint;
  int64_t gpus_per_node = 0;
  std::string gpu_option = "gpus-per-node";  // or gres
  std::string gpu_type;
  int64_t ranks_per_node = 0;  // 0: one a GPU; without GPUs one
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

  // Ranks of a node where the command line gives none.
  int64_t default_ranks() const { return ranks_per_node > 0 ? ranks_per_node : gpus_per_node > 0 ? gpus_per_node : 1; }
};

// Reads lines NAME=value as a shell would, and no others: a value is one bare word, or stands in single or double
// quotes without anything that a shell would replace. Throws UserError naming file and line.
Site parse_site(const std::string& text, const std::string& name);
Site read_site(const std::filesystem::path& file);

// The site file that a command is about: `named`, or without a name the one that TRANSMAMBA_SITE names; empty: none.
std::string site_file(const std::string& named);
// What `file` says; without a file what SLURM takes by itself.
Site site_of(const std::string& file);

// How a rank starts this program on the site's nodes: in its container, at its path there, or as it is here.
std::vector<std::string> rank_program(const Site& site);
// srun and the options that every start of ranks needs; cluster/job.sh has the same.
std::vector<std::string> srun_words(const Site& site);

}  // namespace tmamba
