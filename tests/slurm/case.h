// One case of tests/slurm: a run of a tiny model in jobs of the virtual cluster, what happens to it, and what must come
// of it. Cases run side by side, each on a thread of its own; what is wrong is collected and reported by its test.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "tests/slurm/virtual_cluster.h"

namespace tmamba {

// The runs that nothing happens to, by number of ranks and steps; made once.
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
  static constexpr int64_t kSteps = 300, kEvery = 20;  // of every run, between its checkpoints
  static constexpr int64_t kFault = 45;                // something happens after this step

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

  // Lines for site.env; without any, every case has two nodes of the feature "common" and a rank on each.
  void site(const std::string& lines) { site_ += lines + "\n"; }
  // transmamba submit OPTIONS of this case's run.
  Outcome try_submit(const std::string& options, int nodes = 2);
  // The same; must succeed. Returns the numbers of the jobs.
  std::vector<std::string> submit_all(const std::string& options = "", int nodes = 2);
  std::string submit(const std::string& options = "", int nodes = 2) { return submit_all(options, nodes).at(0); }
  // sbatch ARGUMENTS; must succeed. Returns the number of the job.
  std::string sbatch(const std::string& arguments);

  // Waits until this step is logged.
  void reach(int64_t step, double seconds = 60);
  // The same; then stops the ranks of the job, so that what happens next cannot come too late. What SLURM tells a job
  // wakes them.
  void freeze_at(const std::string& job, int64_t step);
  void thaw(const std::string& job);
  // Tells what SLURM itself has started, and nothing that was started by that: as proctrack/cgroup does.
  void signal_tasks(const std::string& job, int signal);
  // The job's own number, where `job` is a task of an array.
  std::string number_of(const std::string& job);
  std::vector<int> ranks_of(const std::string& job) const;
  // One of SLURM's commands; must succeed.
  void slurm(const std::string& command);

  // Waits for the job to be in this state; it must get there.
  JobFields ends(const std::string& job, const std::string& state = "COMPLETED", double seconds = 90);
  // The time of a fault, and the seconds from it to the first step after the newest resumption.
  void fault() { fault_ = std::chrono::steady_clock::now(); }
  double seconds_to_new_step();

  std::vector<nlohmann::json> events(const std::string& kind = "") const;
  std::string job_log() const;
  // The metrics of the run are those of the quiet one of as many ranks, bit for bit, every step once.
  void same_as_quiet(int ranks);
  // Every resumption goes on from the step that the start before had saved and stopped at.
  void no_step_lost(size_t resumptions);
  // Every resumption goes on from the newest checkpoint before it.
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
  // Whatever helps to see what went wrong.
  std::string story() const;

 private:
  VirtualCluster& cluster_;
  QuietRuns& quiet_;
  std::filesystem::path folder_;
  int64_t steps_ = kSteps;
  std::string run_ = "run", site_, notes_;
  std::vector<std::string> problems_;
  std::chrono::steady_clock::time_point fault_;
};

struct CaseEntry {
  const char* name;
  std::function<void(Case&)> run;
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
