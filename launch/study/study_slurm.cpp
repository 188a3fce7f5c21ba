// Submits a study as batch jobs: one per number of ranks, which runs `transmamba scale --only-ranks N`.
#include <algorithm>
#include <set>

#include "data/io/fs.h"
#include "launch/cli/child_process.h"
#include "launch/slurm/slurm_queue.h"
#include "launch/study/study_run.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

std::string absolute(const std::string& path) { return fs::absolute(path).lexically_normal().string(); }

std::set<int64_t> numbers_of_ranks(const StudyGrid& grid, std::optional<int64_t> only) {
  std::set<int64_t> numbers;
  for (const StudyPoint& point : grid.points) {
    if (!only || *only == point.ranks) numbers.insert(point.ranks);
  }
  return numbers;
}

bool complete(const Study& study, const StudyGrid& grid, int64_t ranks) {
  return std::all_of(grid.points.begin(), grid.points.end(), [&](const StudyPoint& point) {
    return point.ranks != ranks || std::ssize(read_repeats(study, point)) >= study.repeats;
  });
}

}  // namespace

JobSpec study_job(const Study& study, int64_t ranks) {
  JobSpec job;
  job.site = study.site;
  job.ranks_per_node = study.ranks_per_node > 0 ? std::min(study.ranks_per_node, ranks) : ranks;
  job.nodes = ceil_div(ranks, job.ranks_per_node);
  if (!study.time.empty()) job.site.time = study.time;
  job.site.gpus_per_node = std::min(job.site.gpus_per_node, job.ranks_per_node);
  job.site.cpus_per_rank = std::max(job.site.cpus_per_rank, study.threads);
  // Failed repeats are reported, and measured when the user runs scale again: the job does not restart.
  job.site.restarts = 0;
  const std::string dir = absolute(study.dir), which = str("n", ranks);
  job.name = job_name(dir) + "-" + which;
  job.verb = "scale";
  job.program = {own_program()};
  job.starts_ranks = true;
  job.arguments = {"scale",        absolute(study.file), "--launcher", study.starter(),
                   "--only-ranks", str(ranks),           "--dir",      dir,
                   "--repeats",    str(study.repeats)};
  if (!study.site_file.empty()) job.arguments.insert(job.arguments.end(), {"--site", absolute(study.site_file)});
  job.run_dir = dir + "/jobs";
  job.work_dir = fs::current_path().string();
  job.log = which;
  return job;
}

std::vector<SubmittedJob> submit_study(const Study& study, const StudyGrid& grid, std::optional<int64_t> only_ranks,
                                       bool submit) {
  const std::set<int64_t> numbers = numbers_of_ranks(grid, only_ranks);
  std::vector<std::string> names;
  for (int64_t ranks : numbers) names.push_back(study_job(study, ranks).name);
  std::map<std::string, std::string> queued;
  if (submit && !numbers.empty()) {
    require_room(study_job(study, *numbers.rbegin()));
    // Query the queue before reading the results: a job that ends in between has then written them.
    queued = queued_jobs(names);
  }
  std::vector<SubmittedJob> submitted;
  for (int64_t ranks : numbers) {
    if (complete(study, grid, ranks)) continue;
    const JobSpec job = study_job(study, ranks);
    const std::string script = str(job.run_dir, "/", job.log, ".sbatch");
    if (const auto known = queued.find(job.name); known != queued.end()) {
      submitted.push_back({ranks, script, known->second + " (submitted before)"});
      continue;
    }
    if (submit) {
      submitted.push_back({ranks, script, submit_jobs(script, job_script(job), 1).front()});
      continue;
    }
    make_folders(job.run_dir);
    replace_text_durably(script, job_script(job), random_nonce());
    submitted.push_back({ranks, script, ""});
  }
  return submitted;
}

}  // namespace tmamba
