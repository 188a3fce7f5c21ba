// What the launcher told this process about its place in the job, beside what MPI says: ranks, local ranks and with
// them GPUs come from MPI alone, and a launcher that says something else has started another job than was meant.
#pragma once

#include <functional>
#include <string>

namespace tmamba {

// A process's place among the ranks of a job, by MPI.
struct Place {
  int rank = 0, size = 1;
  int local_rank = 0;  // among those of its host
};

// The value of an environment variable, or nullptr.
using Environment = std::function<const char*(const char*)>;

// What is wrong where srun started several tasks without the means to find each other (--mpi=none), for which MPI has
// words that few understand; empty: nothing. Before MPI starts.
std::string missing_pmi(const Environment& environment);

// That this process is alone where SLURM gives its job several tasks: started in a batch script or by salloc, without
// srun or mpirun. A user may want that, so it is a warning; empty: it is not so.
// Before MPI starts, which sets such variables itself.
std::string alone_in_job(const Environment& environment);

// How SLURM_PROCID, SLURM_STEP_NUM_TASKS and SLURM_LOCALID differ from `place`, and what to do; empty: they do not.
// Under mpirun, whose daemons alone are SLURM's tasks, and outside of SLURM there is nothing to compare.
std::string launcher_disagreement(const Environment& environment, const Place& place);

}  // namespace tmamba
