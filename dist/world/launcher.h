// Checks of the launcher's environment variables against MPI. Ranks, local ranks and GPUs come from MPI alone; a
// launcher that disagrees with it has not started the job that the user wanted.
#pragma once

#include <functional>
#include <string>

namespace tmamba {

// A process's place in the job according to MPI.
struct Place {
  int rank = 0, size = 1;
  int local_rank = 0;  // among the ranks of its host
};

// Returns the value of an environment variable, or nullptr if it is not set.
using Environment = std::function<const char*(const char*)>;

// The problem if srun started several tasks without PMI (--mpi=none), so that they cannot find each other; empty if
// not. MPI's own message for this is hard to understand. Call before MPI starts.
std::string missing_pmi(const Environment& environment);

// A warning if SLURM's job has several tasks but this process was started without srun or mpirun, in a batch script or
// by salloc; empty if not. Call before MPI starts, which sets such variables itself.
std::string alone_in_job(const Environment& environment);

// The problem if SLURM_PROCID, SLURM_STEP_NUM_TASKS or SLURM_LOCALID differs from `place`, and what to do; empty if
// none does. Always empty outside of SLURM and under mpirun, where SLURM's tasks are mpirun's daemons.
std::string launcher_disagreement(const Environment& environment, const Place& place);

}  // namespace tmamba
