// Carrying out a study: the starts that are missing, one after the other, or batch jobs that do it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/slurm/job_script.h"
#include "launch/study/study_summary.h"

namespace tmamba {

struct StudyRunOptions {
  std::optional<int64_t> only_ranks;  // points of so many ranks alone
  std::string launcher = "mpirun";    // or "srun"
  bool print = true;                  // a line for each start
};

struct StudyRun {
  std::vector<FailedStart> failed;
  bool stopped = false;  // by a signal, between or within starts
};

// Runs every start that has no result yet, in turns over the points, and writes each result by one rename. A start that
// fails is told and tried once more behind the others, then left for the next call; one that its program refused (exit
// code 2) is not, nor are the others of its point. Throws
// UserError where another process works in the folder, results there are of another experiment, or the launcher is
// missing.
StudyRun run_starts(const Study& study, const StudyGrid& grid, const StudyRunOptions& options);

// What a start measures beside steps.
struct StartParts {
  bool roof = false;  // the rate of a matrix product
  bool io = false;    // a batch from a token file, a checkpoint
};

// The command of one start.
std::vector<std::string> start_command(const Study& study, const StudyPoint& point, const std::string& launcher,
                                       const StartParts& parts);

// The batch script that runs the starts of all points of `ranks` ranks: it calls this program's scale verb again.
JobSpec study_job(const Study& study, int64_t ranks);

struct SubmittedJob {
  int64_t ranks = 0;
  std::string script, job;  // job: its number; empty where it was not submitted
};
// Writes a script for each number of ranks with missing starts (of `only_ranks` alone) to study.dir/jobs, and with
// `submit` gives it to sbatch. What squeue still lists is not submitted again. Throws UserError where SLURM is missing
// or refuses.
std::vector<SubmittedJob> submit_study(const Study& study, const StudyGrid& grid, std::optional<int64_t> only_ranks,
                                       bool submit);

}  // namespace tmamba
