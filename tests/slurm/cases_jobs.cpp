// What SLURM does with jobs: requeue, preemption, time limits, arrays, chains.
#include <signal.h>

#include <fstream>

#include "tests/slurm/case.h"

namespace tmamba {

namespace {

// The job was requeued once and its run equals one without a fault.
void comes_back(Case& c, const std::string& job) {
  c.equal(c.ends(job).at("Restarts"), "1", "restarts");
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

// `stop` makes SLURM signal the frozen job to stop; the run resumes without help.
void resumes(Case& c, const std::string& job, const std::function<void()>& stop) {
  c.fault();
  stop();
  c.recovers();
  comes_back(c, job);
}

void requeue(Case& c) {
  const std::string job = c.submit_frozen();
  resumes(c, job, [&] { c.slurm("scontrol requeue " + job); });
  c.contains(c.job_log(), "SIGTERM: saved step");
  c.contains(c.job_log(), "attempt 1: 2 nodes");  // one log, appended
}

void requeue_under_mpirun(Case& c) {
  c.site("SITE_LAUNCHER=mpirun");
  const std::string job = c.submit_frozen();
  resumes(c, job, [&] { c.slurm("scontrol requeue " + job); });
  c.contains(c.job_log(), "by mpirun");
}

// A job of a partition with a higher priority takes the node.
void preemption(Case& c) {
  c.site("SITE_CONSTRAINT=taken\nSITE_RANKS_PER_NODE=2");
  const std::string job = c.submit_frozen("", 1);
  resumes(c, job, [&] {
    c.slurm("sbatch --partition=high --constraint=taken --nodes=1 --exclusive --output=/dev/null --wrap='sleep 1'");
  });
  c.contains(c.job_log(), "DUE TO PREEMPTION");
}

// The notice is due when the frozen job's limit is lowered, and not again in its second attempt, however slow the
// machine is: the limit is lowered for the first attempt only, and the second cannot end before it is raised.
void near_its_limit(Case& c, const std::string& job, const std::function<void()>& meanwhile) {
  c.hold(2 * Case::kFault);
  c.slurm("scontrol update JobId=" + job + " TimeLimit=2");
  meanwhile();
  c.restarted(job);
  c.slurm("scontrol update JobId=" + job + " TimeLimit=10");
  c.release(job);
}

void time_limit(Case& c) {
  c.quiet_run(2);  // SLURM looks at time limits 30 s after its start
  c.site("SITE_SIGNAL_SECONDS=115");
  const std::string job = c.submit_frozen();
  near_its_limit(c, job, [] {});
  comes_back(c, job);
  c.contains(c.job_log(), "SIGUSR1: saved step");
}

// SLURM sends the notice to the script, the script to mpirun, mpirun to the ranks.
void time_limit_under_mpirun(Case& c) {
  c.quiet_run(2);
  c.site("SITE_SIGNAL_SECONDS=115\nSITE_LAUNCHER=mpirun");
  const std::string job = c.submit_frozen();
  near_its_limit(c, job, [&] {
    c.wait_until("mpirun forwards the signal",
                 [&] { return c.job_log().find("Forwarding signal 10") != std::string::npos; });
    c.thaw(job);
  });
  comes_back(c, job);
  c.contains(c.job_log(), "SIGUSR1: saved step");
}

// Where SLURM does not requeue on exit code 85, the script requests the requeue.
void requeue_by_the_script(Case& c) {
  c.site("SITE_REQUEUE=self");
  const std::string job = c.submit_frozen();
  resumes(c, job, [&] {
    c.slurm("scancel --signal=USR1 " + job);
    c.thaw(job);
  });
  c.contains(c.job_log(), "saved; requeued");
}

// On most clusters signals reach the processes that SLURM started, not the ranks, which are their children.
void tasks_are_signalled(Case& c) {
  c.site("SITE_REQUEUE=self");
  const std::string job = c.submit_frozen();
  resumes(c, job, [&] {
    c.signal_tasks(job, SIGUSR1);
    c.thaw(job);
  });
  c.contains(c.job_log(), "SIGUSR1: saved step");
}

void tasks_are_signalled_under_mpirun(Case& c) {
  c.site("SITE_LAUNCHER=mpirun");
  const std::string job = c.submit_frozen();
  resumes(c, job, [&] {
    c.signal_tasks(job, SIGTERM);
    c.thaw(job);
  });
  c.contains(c.job_log(), "SIGTERM\n");
}

void scancel(Case& c) {
  const std::string job = c.submit_frozen();
  c.slurm("scancel " + job);
  c.equal(c.ends(job, "CANCELLED").at("Restarts"), "0", "restarts");
  c.equal(c.ends(c.submit()).at("ExitCode"), "0:0", "exit code");
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

// A run that its user stops is not requeued.
void stop_switch(Case& c) {
  const std::string job = c.submit_frozen();
  std::ofstream(c.run_dir() / "STOP").close();
  c.thaw(job);
  const JobFields end = c.ends(job);
  c.equal(end.at("ExitCode"), "0:0", "exit code");
  c.equal(end.at("Restarts"), "0", "restarts");
  c.contains(c.job_log(), "stopped by the file STOP: not requeued");
  c.ends(c.submit());
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

void term_twice(Case& c) {
  const std::string job = c.submit_frozen();
  resumes(c, job, [&] {
    c.slurm("scancel --signal=TERM " + job);
    c.slurm("scancel --signal=TERM " + job);
    c.slurm("scontrol requeue " + job);
  });
}

// The notice comes while the ranks are starting.
void early_notice(Case& c) {
  c.hold(Case::kFault);  // not done before the notice
  const std::string job = c.submit();
  c.wait_until("ranks", [&] { return !c.ranks_of(job).empty(); });
  c.slurm("scancel --signal=USR1 " + job);
  c.release(job);
  c.ends(job);
  // Saved and requeued where the program had started, else started again by the script.
  c.expect(c.events("start").size() + c.events("resume").size() >= 2 ||
               c.job_log().find("restarting the ranks") != std::string::npos,
           "the notice had no effect");
  c.same_as_quiet(2);
}

// Tasks run one after the other; the next continues what a stopped one left, and the last are not needed.
void array_of_jobs(Case& c) {
  c.hold(Case::kFault);
  const std::string array = c.submit("--array 4");
  for (const char* task : {"_1", "_2"}) {
    c.freeze(array + task);
    if (task == std::string("_1")) c.hold(c.last_logged_step() + Case::kFault);
    c.slurm("scancel --signal=USR1 " + c.number_of(array + task) + ".0");  // SLURM does not signal the job of one task
    c.thaw(array + task);
    c.equal(c.ends(array + task).at("ExitCode"), "0:0", "exit code");
  }
  c.ends(array + "_3");
  c.no_step_lost(2);
  c.same_as_quiet(2);
}

// Two arrays for one run directory run one after the other; what is left of both is cancelled when the run is done.
void two_arrays(Case& c) {
  c.hold(Case::kFault);
  const std::string first = c.submit("--array 2");
  c.freeze(first + "_1");
  const std::string second = c.submit("--array 2");
  const auto waits = [](const JobFields& f) { return f.at("JobState") != "PENDING" || f.at("Reason") == "Dependency"; };
  const auto still_waits = [&](const std::string& when) {
    const auto fields = c.cluster().wait(second, Case::kLimit, waits);
    c.expect(fields && fields->at("JobState") == "PENDING", "the second array does not wait " + when);
  };
  still_waits("for the first");
  c.slurm("scancel --signal=USR1 " + c.number_of(first + "_1") + ".0");
  c.thaw(first + "_1");
  c.ends(first + "_1");
  still_waits("for the first's second task");
  c.ends(first + "_2");
  c.ends(second, "CANCELLED");
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

void chain_of_jobs(Case& c) {
  c.hold(Case::kFault);
  const std::vector<std::string> jobs = c.submit_all("--chain 3");
  c.equal(jobs.size(), 3u, "jobs");
  c.freeze(jobs[0]);
  c.slurm("scancel --signal=USR1 " + jobs[0]);
  c.thaw(jobs[0]);
  c.ends(jobs[0]);
  c.ends(jobs[1]);
  c.ends(jobs[2], "CANCELLED");  // nothing left to do
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

// A job that depends on the end of another, whatever its exit code.
void dependency(Case& c) {
  const std::string first = c.submit_frozen();
  c.site("SITE_SBATCH_OPTIONS=--dependency=afterany:" + first);
  const std::string second = c.submit();
  c.slurm("scancel " + first);
  c.ends(first, "CANCELLED");
  c.ends(second);
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

}  // namespace

std::vector<CaseEntry> job_cases() {
  return {{"Requeue", requeue},
          {"RequeueUnderMpirun", requeue_under_mpirun},
          {"RequeueByTheScript", requeue_by_the_script},
          {"TasksAreSignalled", tasks_are_signalled},
          {"TasksAreSignalledUnderMpirun", tasks_are_signalled_under_mpirun},
          {"Preemption", preemption},
          {"TimeLimit", time_limit, true},
          {"TimeLimitUnderMpirun", time_limit_under_mpirun, true},
          {"Scancel", scancel},
          {"StopSwitch", stop_switch},
          {"TermTwice", term_twice},
          {"EarlyNotice", early_notice},
          {"Array", array_of_jobs},
          {"TwoArrays", two_arrays},
          {"Chain", chain_of_jobs},
          {"Dependency", dependency}};
}

}  // namespace tmamba
