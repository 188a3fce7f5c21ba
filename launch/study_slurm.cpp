// A study as batch jobs: one for each number of ranks, which runs `transmamba scale` on its part of the points.
#include <algorithm>
#include <cstdlib>
#include <set>

#include "data/fs.h"
#include "launch/child_process.h"
#include "launch/study_run.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

std::string program_file() { return fs::read_symlink("/proc/self/exe").string(); }

// An option of sbatch as a line of a script. sbatch reads these lines as a shell does, so they are quoted alike.
std::string directive(const std::string& option) {
  if (option.find('\n') != std::string::npos) throw UserError(str("slurm: an option holds a line break: ", option));
  return "#SBATCH " + shell_line({option}) + "\n";
}

struct Answer {
  int code = 0;
  std::string text;
};

Answer ask(const fs::path& folder, const std::vector<std::string>& command) {
  constexpr int64_t kMost = 1 << 20;
  const fs::path output = folder / "answer.out", errors = folder / "answer.err";
  const ChildEnd end = run_child({.command = command, .output = output, .errors = errors, .timeout = 120});
  std::string text = read_text(output, kMost) + read_text(errors, kMost);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  fs::remove(output), fs::remove(errors);
  return {end.exit_code, text};
}

bool still_queued(const fs::path& folder, const std::string& job) {
  if (job.empty()) return false;
  const Answer answer = ask(folder, {"squeue", "--noheader", "--jobs", job});
  return answer.code == 0 && !answer.text.empty();
}

}  // namespace

std::string study_script(const Study& study, int64_t ranks) {
  const int64_t on_node = study.ranks_per_node > 0 ? std::min(study.ranks_per_node, ranks) : ranks;
  const fs::path jobs = fs::absolute(fs::path(study.dir)) / "jobs";
  std::string script = "#!/bin/bash\n";
  script += directive(str("--job-name=scale-", fs::path(study.file).stem().string(), "-n", ranks));
  script += directive(str("--nodes=", ceil_div(ranks, on_node)));
  script += directive(str("--ntasks=", ranks));
  script += directive(str("--ntasks-per-node=", on_node));
  if (study.threads > 0) script += directive(str("--cpus-per-task=", study.threads));
  script += directive("--time=" + study.time);
  if (!study.partition.empty()) script += directive("--partition=" + study.partition);
  if (!study.account.empty()) script += directive("--account=" + study.account);
  script += directive("--output=" + (jobs / str("n", ranks, ".log")).string());
  script += directive("--open-mode=append");
  for (const std::string& option : study.options) script += directive(option);
  script += "set -euo pipefail\n";
  // srun does not take the job's cores per task over by itself.
  if (study.threads > 0) script += str("export SRUN_CPUS_PER_TASK=", study.threads, "\n");
  for (const std::string& line : study.setup) script += line + "\n";
  script += "cd " + shell_line({fs::current_path().string()}) + "\n";
  script += "exec " +
            shell_line({program_file(), "scale", study.file, "--launcher", "srun", "--only-ranks", str(ranks), "--dir",
                        study.dir}) +
            "\n";
  return script;
}

std::vector<SubmittedJob> submit_study(const Study& study, const StudyGrid& grid, bool submit) {
  std::set<int64_t> missing;
  for (const StudyPoint& point : grid.points) {
    if (std::ssize(read_starts(study, point)) < study.repeats) missing.insert(point.ranks);
  }
  const fs::path jobs = fs::path(study.dir) / "jobs";
  make_folders(jobs);
  std::vector<SubmittedJob> submitted;
  for (int64_t ranks : missing) {
    const fs::path script = jobs / str("n", ranks, ".sbatch"), id_file = jobs / str("n", ranks, ".job");
    replace_text_durably(script, study_script(study, ranks), random_nonce());
    if (!submit) {
      submitted.push_back({ranks, script.string(), ""});
      continue;
    }
    std::error_code error;
    const std::string earlier = fs::exists(id_file, error) ? read_text(id_file, 1 << 10) : "";
    if (still_queued(jobs, earlier)) {
      submitted.push_back({ranks, script.string(), earlier + " (submitted before)"});
      continue;
    }
    const Answer answer = ask(jobs, {"sbatch", "--parsable", script.string()});
    if (answer.code != 0) throw UserError(str("sbatch refused ", script.string(), ": ", answer.text));
    const std::string job = answer.text.substr(0, answer.text.find_first_of(";\n"));
    replace_text_durably(id_file, job, random_nonce());
    submitted.push_back({ranks, script.string(), job});
  }
  return submitted;
}

}  // namespace tmamba
