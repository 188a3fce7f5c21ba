// One case of tests/slurm: a run of a tiny model in jobs of the virtual cluster, a fault, and the expected result.
// Cases run concurrently, one thread each; each collects its problems, which its test reports. Cases wait for states
// only: the limits of these waits end a hang and are far longer than any delay of a busy machine.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "tests/slurm/virtual_cluster.h"

namespace tmamba {

// Runs without a fault, by number of ranks and steps; each is made once.
class QuietRuns {
 public:
  explicit QuietRuns(std::filesystem::path folder) : folder_(std::move(folder)) {}
  // The folder of the run; made when it is first asked for.
  std::filesystem::path run_of(int ranks, int64_t steps);

 private:
  std::filesystem::path folder_;
  std::mutex mutex_;
  std::map<std::pair<int, int64_t>, std::filesystem::path> runs_;
};

class Case {
 public:
  static constexpr int64_t kSteps = 300, kEvery = 20;  // steps of a run, between checkpoints
  static constexpr int64_t kFault = 45;                // the fault comes after this step
  static constexpr double kLimit = 300;                // seconds until a wait fails

  Case(VirtualCluster& cluster, QuietRuns& quiet, const std::string& name);

  VirtualCluster& cluster() { return cluster_; }
  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path run_dir() const { return folder_ / run_; }
  // The quiet run of as many ranks.
  std::filesystem::path quiet_run(int ranks) { return quiet_.run_of(ranks, steps_); }
  // Another number of steps than kSteps.
  void set_steps(int64_t steps) { steps_ = steps; }
  int64_t steps() const { return steps_; }
  int64_t last_logged_step() const;
  // Another name for the folder of the run.
  void name_run(const std::string& name) { run_ = name; }

  // Adds a line to site.env; by default every case has two nodes of the feature "common" and one rank on each.
  void site(const std::string& lines) { site_ += lines + "\n"; }
  // Seconds in which a healthy node answers the job script; a lost node costs twice as much.
  void answer_seconds(int seconds);
  // transmamba submit OPTIONS of this case's run.
  Outcome try_submit(const std::string& options, int nodes = 2);
  // The same; must succeed. Returns the numbers of the jobs.
  std::vector<std::string> submit_all(const std::string& options = "", int nodes = 2);
  std::string submit(const std::string& options = "", int nodes = 2) { return submit_all(options, nodes).at(0); }
  // sbatch ARGUMENTS; must succeed. Returns the number of the job.
  std::string sbatch(const std::string& arguments);

  // The run stops itself after this step; to be called before the run can reach it.
  void hold(int64_t step);
  // Waits until the run has stopped itself, then stops all ranks of the job, so that the fault cannot come too late.
  // SLURM wakes them when it signals the job.
  void freeze(const std::string& job);
  // hold(kFault), submit(), freeze().
  std::string submit_frozen(const std::string& options = "", int nodes = 2);
  void thaw(const std::string& job);
  // Undoes hold(), and freezing by it.
  void release(const std::string& job);
  // Waits for a condition on files or processes; throws after kLimit.
  void wait_until(const std::string& what, const std::function<bool()>& condition);
  // Signals the processes that SLURM itself started, not their children: as proctrack/cgroup does.
  void signal_tasks(const std::string& job, int signal);
  // The job's own number, where `job` is a task of an array.
  std::string number_of(const std::string& job);
  std::vector<int> ranks_of(const std::string& job) const;
  // One of SLURM's commands; must succeed.
  void slurm(const std::string& command);

  // Waits for the job to be in this state; it must get there.
  JobFields ends(const std::string& job, const std::string& state = "COMPLETED");
  // Waits until SLURM has requeued the job.
  void restarted(const std::string& job);
  // Call before a fault; recovers() then waits for the first new step of the next attempt and notes how long that took.
  void fault();
  void recovers();

  std::vector<nlohmann::json> events(const std::string& kind = "") const;
  std::string job_log() const;
  // The metrics of the run equal those of the quiet run of as many ranks, bit for bit, with each step once.
  void same_as_quiet(int ranks);
  // Every attempt resumes from the step that the one before saved and stopped at.
  void no_step_lost(size_t resumptions);
  // Every attempt resumes from the latest checkpoint before it.
  void none_lost_but_since_checkpoint(size_t resumptions);

  void expect(bool condition, const std::string& what);
  template <class A, class B>
  void equal(const A& a, const B& b, const std::string& what) {
    std::ostringstream text;
    text << what << ": " << a << ", not " << b;
    expect(a == b, text.str());
  }
  void contains(const std::string& text, const std::string& part);
  void note(const std::string& figure) { notes_ += " " + figure; }

  const std::vector<std::string>& problems() const { return problems_; }
  const std::string& notes() const { return notes_; }
  // Events and job logs, for a failed case.
  std::string story() const;

 private:
  VirtualCluster& cluster_;
  QuietRuns& quiet_;
  std::filesystem::path folder_;
  int64_t steps_ = kSteps;
  std::string run_ = "run", site_, notes_;
  std::vector<std::string> problems_;
  std::chrono::steady_clock::time_point fault_;
  size_t resumptions_ = 0;  // before the fault
};

struct CaseEntry {
  const char* name;
  std::function<void(Case&)> run;
  bool slow = false;  // waits for one of SLURM's own periods of 30 s
};

// The cases of each file.
std::vector<CaseEntry> chaos_cases();
std::vector<CaseEntry> fault_cases();
std::vector<CaseEntry> job_cases();
std::vector<CaseEntry> rank_cases();
std::vector<CaseEntry> study_cases();
std::vector<CaseEntry> submit_cases();

// The configuration of every run, beside shared token files.
void write_case_config(const std::filesystem::path& folder, const std::filesystem::path& data);

}  // namespace tmamba
