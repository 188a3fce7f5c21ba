// Runs a study: measures the missing repeats one after the other, or submits batch jobs that do so.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/slurm/job_script.h"
#include "launch/study/study_summary.h"

namespace tmamba {

struct StudyRunOptions {
  std::optional<int64_t> only_ranks;  // only points with this number of ranks
  std::string launcher = "mpirun";    // or "srun"
  bool print = true;                  // print a line per repeat
};

struct StudyRun {
  std::vector<FailedRepeat> failed;
  bool stopped = false;  // by a signal
};

// Runs every repeat that has no result yet, alternating over the points, and writes each result atomically. A failed
// repeat is reported and retried once after all others; a second failure leaves it to the next call. If the program
// refuses its input (exit code 2), neither this repeat nor the others of its point are tried again. Throws UserError if
// another process works in the study's directory, if it holds results of another experiment, or if the launcher is
// missing.
StudyRun run_repeats(const Study& study, const StudyGrid& grid, const StudyRunOptions& options);

// What a repeat measures in addition to steps.
struct RepeatParts {
  bool roof = false;  // the GEMM rate
  bool io = false;    // reading a batch from a token file, and writing a checkpoint
};

// The command line of one repeat.
std::vector<std::string> repeat_command(const Study& study, const StudyPoint& point, const std::string& launcher,
                                        const RepeatParts& parts);

// The batch job that runs the repeats of all points with `ranks` ranks; its script calls `transmamba scale`.
JobSpec study_job(const Study& study, int64_t ranks);

struct SubmittedJob {
  int64_t ranks = 0;
  std::string script, job;  // job: SLURM job number; empty if not submitted
};
// Writes a batch script to study.dir/jobs for each number of ranks with missing repeats (only `only_ranks`, if given);
// `submit` also submits it by sbatch. Jobs that squeue still lists are not submitted again. Throws UserError if SLURM
// is missing or rejects the job.
std::vector<SubmittedJob> submit_study(const Study& study, const StudyGrid& grid, std::optional<int64_t> only_ranks,
                                       bool submit);

}  // namespace tmamba
