// Builds the text of a batch script for a training run or for one part of a study. User-chosen values are quoted: for
// SLURM in the #SBATCH lines, for the shell in the body.
#pragma once

#include <string>
#include <vector>

#include "launch/slurm/site.h"

namespace tmamba {

struct JobSpec {
  Site site;
  int64_t nodes = 1;
  int64_t ranks_per_node = 1;
  std::string name;                    // of the job; see job_name()
  std::string verb;                    // verb of this program that writes the script
  std::vector<std::string> program;    // command that starts it
  std::vector<std::string> arguments;  // of the program: train CONFIG ...
  bool starts_ranks = false;           // the program launches its ranks itself; the script runs it once
  std::string run_dir, work_dir;       // absolute
  std::string file;                    // path of the script; empty: it is not kept and cannot be submitted again
  std::string log = "slurm";           // file name of the log in run_dir, without the job id
  int64_t array = 0;                   // tasks of a job array, run one after the other; 0: no array
};

// Quotes `text` as one shell word.
std::string shell_quoted(const std::string& text);
// Quotes a value for an #SBATCH line. `pattern`: the option expands %j and the like, so % is escaped.
std::string sbatch_quoted(const std::string& text, bool pattern = false);

// Returns a job name of letters, digits, dots, dashes and underscores: `name`, or the last part of the run directory's
// path if it is empty, then a dash and a hash of the whole path. Jobs of one name depend on and cancel each other, so
// two run directories never share a name.
std::string job_name(const std::string& run_dir, const std::string& name = "");

// Throws UserError if a path or argument contains a line break or another control character.
std::string job_script(const JobSpec& job);

// Contents of cluster/job.sh at build time.
std::string job_body();

}  // namespace tmamba
