// SLURM's own commands, as those who submit jobs need them.
#pragma once

#include <filesystem>
#include <map>
#include <optional>

#include "launch/slurm/job_script.h"

namespace tmamba {

// Minutes of a time limit as SLURM writes it ("30", "30:00", "24:00:00", "1-12", "1-12:00:00", "infinite"; 0 stands for
// none), rounded up as SLURM does; no limit is the largest number. Nothing where it is no such text.
std::optional<int64_t> slurm_minutes(const std::string& limit);

// Throws UserError where this machine has no SLURM, or SLURM no such partition, too few nodes in it for this job, or a
// limit under the job's time.
void require_room(const JobSpec& job);

// Throws UserError where this user has jobs of another name for the run folder of `job`: neither would wait for the
// other.
void require_one_name(const JobSpec& job);

// Jobs of this user with these names that wait, run or end just now: numbers by name. Throws UserError where SLURM does
// not answer.
std::map<std::string, std::string> queued_jobs(const std::vector<std::string>& names);

// Writes the script to `file`, in place of one that is there, and gives it to sbatch, `count` times. Returns the
// numbers of the jobs, in the order they run in. Throws UserError where SLURM refuses it; where it would (sbatch
// --test-only), nothing was written.
std::vector<std::string> submit_jobs(const std::filesystem::path& file, const std::string& script, int64_t count);

}  // namespace tmamba
