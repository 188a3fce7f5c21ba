// SLURM's own commands, as those who submit jobs need them.
#pragma once

#include <filesystem>
#include <map>

#include "launch/job_script.h"

namespace tmamba {

// Throws UserError where this machine has no SLURM, SLURM has no such partition, or too few nodes for this job.
void require_room(const JobSpec& job);

// Throws UserError where this user has jobs of another name for the run folder of `job`: neither would wait for the
// other.
void require_one_name(const JobSpec& job);

// Jobs of this user with these names that wait, run or end just now: numbers by name. Throws UserError where SLURM does
// not answer.
std::map<std::string, std::string> queued_jobs(const std::vector<std::string>& names);

// Gives the script to sbatch, `count` times. Returns the numbers of the jobs, in the order they run in. Throws
// UserError where SLURM refuses it.
std::vector<std::string> submit_jobs(const std::filesystem::path& script, int64_t count);

}  // namespace tmamba
