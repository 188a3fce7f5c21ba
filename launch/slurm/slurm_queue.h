// Calls SLURM's commands (sinfo, squeue, sbatch, sacctmgr) to check, submit and find jobs.
#pragma once

#include <filesystem>
#include <map>
#include <optional>

#include "launch/slurm/job_script.h"

namespace tmamba {

// Converts a time limit in SLURM's notation ("30", "30:00", "24:00:00", "1-12", "1-12:00:00", "infinite") to minutes,
// rounded up as SLURM does. "0" and "infinite" give the largest number. Returns nullopt for any other text.
std::optional<int64_t> slurm_minutes(const std::string& limit);

// Throws UserError if this machine has no SLURM, or if no partition of the job exists, has enough nodes and allows its
// time limit.
void require_room(const JobSpec& job);

// Throws UserError if this user has jobs with another name for the run directory of `job`: the two would not wait for
// each other.
void require_one_name(const JobSpec& job);

// Returns the ids, by name, of this user's pending, running or completing jobs with these names. Throws UserError if
// SLURM does not answer.
std::map<std::string, std::string> queued_jobs(const std::vector<std::string>& names);

// Writes the script to `file`, replacing an older one, and submits it `count` times. Returns the job ids in the order
// in which the jobs run. Throws UserError if SLURM refuses it; if `sbatch --test-only` already does, nothing is
// written.
std::vector<std::string> submit_jobs(const std::filesystem::path& file, const std::string& script, int64_t count);

}  // namespace tmamba
