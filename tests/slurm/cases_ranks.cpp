// Ranks, local ranks and GPUs as SLURM gives them, and launchers that do not fit.
#include <algorithm>
#include <set>
#include <sstream>

#include "tests/slurm/case.h"

namespace tmamba {

namespace {

void eight_ranks(Case& c) {
  c.site("SITE_RANKS_PER_NODE=2\nSITE_GPUS_PER_NODE=2");
  c.equal(c.ends(c.submit("", 4)).at("ExitCode"), "0:0", "exit code");
  c.contains(c.job_log(), "4 nodes (n[0-3]), 8 ranks, by srun");
  c.same_as_quiet(8);
}

// Every rank has a GPU of its own, whatever of them the launcher shows it.
void each_its_gpu(Case& c, const std::string& options, int ranks_per_node) {
  const Outcome outcome = c.cluster().run(
      c.folder(), "srun --constraint=common --mpi=pmix -N2 --ntasks-per-node=" + std::to_string(ranks_per_node) + " " +
                      options + " " + SLURM_PLACE);
  c.equal(outcome.code, 0, "exit code");
  std::istringstream lines(outcome.output);
  std::set<std::string> gpus;
  std::vector<int> seen;
  int rank = 0, local_rank = 0, local_size = 0;
  for (std::string line, node, gpu; std::getline(lines, line);) {
    std::istringstream words(line);
    if (!(words >> rank >> node >> local_rank >> local_size >> gpu)) continue;  // what srun says
    seen.push_back(rank);
    c.equal(local_rank, rank % ranks_per_node, "local rank");
    c.equal(local_size, ranks_per_node, "ranks of a node");
    c.expect(gpus.insert(node + ":" + gpu).second,
             "two ranks take GPU " + gpu + " of " + node + ":\n" + outcome.output);
  }
  c.equal(seen.size(), static_cast<size_t>(2 * ranks_per_node), "ranks in:\n" + outcome.output);
}

void all_gpus_visible(Case& c) { each_its_gpu(c, "--gpus-per-node=2", 2); }
void one_gpu_visible(Case& c) { each_its_gpu(c, "--gpus-per-task=1", 2); }
void gpus_mapped(Case& c) { each_its_gpu(c, "--gpus-per-node=2 --gpu-bind=map_gpu:1,0", 2); }
void one_rank_a_node(Case& c) { each_its_gpu(c, "--gpus-per-node=1", 1); }

void ranks_that_disagree(Case& c) {
  const Outcome outcome = c.cluster().run(
      c.folder(), "srun --constraint=common --mpi=pmix -N1 -n2 bash -c \"SLURM_LOCALID=\\$((1 - SLURM_LOCALID)) exec " +
                      command_line("train run.toml", 0) + "\"");
  c.equal(outcome.code, 2, "exit code");
  c.contains(outcome.output, "rank 0: MPI reports local rank 0, but SLURM set SLURM_LOCALID=1");
}

void launcher_without_pmix(Case& c) {
  const Outcome outcome =
      c.cluster().run(c.folder(), "srun --constraint=common --mpi=none -N2 -n2 " + command_line("train run.toml", 0));
  c.equal(outcome.code, 2, "exit code");
  c.contains(outcome.output, "without PMI");
  c.contains(outcome.output, "srun --mpi=pmix");
}

}  // namespace

std::vector<CaseEntry> rank_cases() {
  return {{"EightRanksOnFourNodes", eight_ranks},
          {"AllGpusVisible", all_gpus_visible},
          {"OneGpuVisible", one_gpu_visible},
          {"GpusMapped", gpus_mapped},
          {"OneRankANode", one_rank_a_node},
          {"RanksThatDisagree", ranks_that_disagree},
          {"LauncherWithoutPmix", launcher_without_pmix}};
}

}  // namespace tmamba
