// The batch script of a training run, or of a study's part: text made of values, nothing run. Everything that a user
// may choose freely is quoted, for SLURM in the head of the script and for the shell in its body.
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
  std::string verb;                    // of this program that writes it
  std::vector<std::string> program;    // how it is started
  std::vector<std::string> arguments;  // of the program: train CONFIG ...
  bool starts_ranks = false;           // the program does that itself: the script starts it once
  std::string run_dir, work_dir;       // absolute
  std::string file;                    // where the script will be; empty: nowhere that it could be submitted from
  std::string log = "slurm";           // name of the log in run_dir, before the job's number
  int64_t array = 0;                   // tasks of an array, one after the other; 0: no array
};

// A word for the shell that stands for exactly this text.
std::string shell_quoted(const std::string& text);
// A value of an option in an #SBATCH line; `pattern` where SLURM replaces %j and the like in it.
std::string sbatch_quoted(const std::string& text, bool pattern = false);

// A job name of letters, digits, dots, lines: `name`, or without one the last part of the run folder's path, and a mark
// of the whole path behind the last line. Jobs of one name wait for each other and cancel each other, so a name is
// never that of two folders.
std::string job_name(const std::string& run_dir, const std::string& name = "");

// Throws UserError where a name has a line break or another control character in it.
std::string job_script(const JobSpec& job);

// cluster/job.sh, of the sources this program was built from.
std::string job_body();

}  // namespace tmamba
