#include "dist/world/launcher.h"

#include <array>
#include <cstdlib>

#include "kernels/base/check.h"

namespace tmamba {

namespace {

bool started_by_srun(const Environment& environment) {
  // The launchers of Open MPI and MPICH set these for their ranks.
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "HYDI_CONTROL_FD"}) {
    if (environment(variable) != nullptr) return false;
  }
  return environment("SLURM_STEP_NUM_TASKS") != nullptr && environment("SLURM_PROCID") != nullptr;
}

}  // namespace

std::string missing_pmi(const Environment& environment) {
  if (!started_by_srun(environment) || std::atoi(environment("SLURM_STEP_NUM_TASKS")) < 2) return "";
  const char* kind = environment("SLURM_MPI_TYPE");
  if (kind != nullptr && std::string(kind) != "none") return "";
  for (const char* variable : {"PMIX_RANK", "PMI_RANK", "PMI_FD"}) {
    if (environment(variable) != nullptr) return "";
  }
  return "srun started several tasks without PMI (--mpi=none), so they cannot find each other: start with "
         "srun --mpi=pmix, or with mpirun";
}

std::string alone_in_job(const Environment& environment) {
  // Every launcher sets one of these.
  for (const char* variable :
       {"SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PMI_FD", "HYDI_CONTROL_FD"}) {
    if (environment(variable) != nullptr) return "";
  }
  const char* job = environment("SLURM_JOB_ID");
  const char* tasks = environment("SLURM_NTASKS");
  if (job == nullptr || tasks == nullptr || std::atoi(tasks) < 2) return "";
  return str(
      "warning: SLURM job ", job, " has ", tasks,
      " tasks, but this program was started without srun or mpirun and runs as one rank; to use all tasks, start "
      "it with srun --mpi=pmix or mpirun");
}

std::string launcher_disagreement(const Environment& environment, const Place& place) {
  if (!started_by_srun(environment)) return "";
  struct Pair {
    const char* variable;
    const char* meaning;
    int mpi;
  };
  const std::array<Pair, 3> pairs{{{"SLURM_STEP_NUM_TASKS", "ranks", place.size},
                                   {"SLURM_PROCID", "rank", place.rank},
                                   {"SLURM_LOCALID", "local rank", place.local_rank}}};
  for (const Pair& pair : pairs) {
    const char* value = environment(pair.variable);
    if (value == nullptr || std::atoi(value) == pair.mpi) continue;
    return str("rank ", place.rank, ": MPI reports ", pair.meaning, " ", pair.mpi, ", but SLURM set ", pair.variable,
               "=", value,
               ". A rank's GPU depends on its place in the job, so the two must agree: start with srun --mpi=pmix and "
               "an MPI library built with PMIx, or with mpirun, and do not set SLURM_ variables by hand");
  }
  return "";
}

}  // namespace tmamba
