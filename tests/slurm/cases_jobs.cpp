// What SLURM does with jobs: requeue, preemption, time limits, arrays, chains.
#include <signal.h>

#include <fstream>

#include "tests/slurm/case.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

// Half a minute from the fault to the first new step, most of it SLURM's own.
constexpr double kRequeueSeconds = 30;

// The job was started once more and comes out as if nothing had happened.
void comes_back(Case& c, const std::string& job) {
  c.equal(c.ends(job).at("Restarts"), "1", "restarts");
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

// `tell` makes SLURM tell the job to stop; it goes on by itself.
void goes_on(Case& c, const std::string& job, const std::function<void()>& tell) {
  c.freeze_at(job, Case::kFault);
  c.fault();
  tell();
  c.expect(c.seconds_to_new_step() < kRequeueSeconds, "too late");
  comes_back(c, job);
}

void requeue(Case& c) {
  const std::string job = c.submit();
  goes_on(c, job, [&] { c.slurm("scontrol requeue " + job); });
  c.contains(c.job_log(), "SIGTERM: saved step");
  c.contains(c.job_log(), "start 1: 2 nodes");  // one log, appended
}

void requeue_under_mpirun(Case& c) {
  c.site("SITE_LAUNCHER=mpirun");
  const std::string job = c.submit();
  goes_on(c, job, [&] { c.slurm("scontrol requeue " + job); });
  c.contains(c.job_log(), "by mpirun");
}

// A job of a higher partition takes the node for itself.
void preemption(Case& c) {
  c.site("SITE_CONSTRAINT=taken\nSITE_RANKS_PER_NODE=2");
  const std::string job = c.submit("", 1);
  goes_on(c, job, [&] {
    c.slurm("sbatch --partition=high --constraint=taken --nodes=1 --exclusive --output=/dev/null --wrap='sleep 1'");
  });
  c.contains(c.job_log(), "DUE TO PREEMPTION");
}

// The notice is due when the job has stopped where it is wanted, and not again in its second start, however slow the
// machine is: the limit is lowered for this time only.
void near_its_limit(Case& c, const std::string& job, const std::function<void()>& meanwhile) {
  c.freeze_at(job, Case::kFault);
  c.slurm("scontrol update JobId=" + job + " TimeLimit=1");
  meanwhile();
  c.cluster().wait(job, 60, [](const JobFields& f) { return f.at("Restarts") == "1"; });
  c.slurm("scontrol update JobId=" + job + " TimeLimit=5");
}

void time_limit(Case& c) {
  c.site("SITE_TIME=5\nSITE_SIGNAL_SECONDS=55");
  const std::string job = c.submit();
  near_its_limit(c, job, [] {});
  comes_back(c, job);
  c.contains(c.job_log(), "SIGUSR1: saved step");
}

// The notice comes to the script, which hands it to mpirun, which hands it to the ranks.
void time_limit_under_mpirun(Case& c) {
  c.site("SITE_TIME=5\nSITE_SIGNAL_SECONDS=55\nSITE_LAUNCHER=mpirun");
  const std::string job = c.submit();
  near_its_limit(c, job, [&] {
    while (c.job_log().find("Forwarding signal 10") == std::string::npos) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      if (c.cluster().wait(job, 0, [](const JobFields& f) { return f.at("JobState") != "RUNNING"; })) break;
    }
    c.thaw(job);
  });
  comes_back(c, job);
  c.contains(c.job_log(), "SIGUSR1: saved step");
}

// On sites whose SLURM does not know exit code 85 the script asks for the requeue.
void requeue_by_the_script(Case& c) {
  c.site("SITE_REQUEUE=self");
  const std::string job = c.submit();
  goes_on(c, job, [&] {
    c.slurm("scancel --signal=USR1 " + job);
    c.thaw(job);
  });
  c.contains(c.job_log(), "saved; requeued");
}

// The signals of most clusters reach what SLURM has started and not the ranks, which are started by that.
void tasks_are_told(Case& c) {
  c.site("SITE_REQUEUE=self");
  const std::string job = c.submit();
  goes_on(c, job, [&] {
    c.signal_tasks(job, SIGUSR1);
    c.thaw(job);
  });
  c.contains(c.job_log(), "SIGUSR1: saved step");
}

void tasks_are_told_under_mpirun(Case& c) {
  c.site("SITE_LAUNCHER=mpirun");
  const std::string job = c.submit();
  goes_on(c, job, [&] {
    c.signal_tasks(job, SIGTERM);
    c.thaw(job);
  });
  c.contains(c.job_log(), "SIGTERM\n");
}

void scancel(Case& c) {
  const std::string job = c.submit();
  c.freeze_at(job, Case::kFault);
  c.slurm("scancel " + job);
  c.equal(c.ends(job, "CANCELLED").at("Restarts"), "0", "restarts");
  c.equal(c.ends(c.submit()).at("ExitCode"), "0:0", "exit code");
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

// The user's own end of a run is not taken for a reason to requeue it.
void stop_switch(Case& c) {
  const std::string job = c.submit();
  c.freeze_at(job, Case::kFault);
  std::ofstream(c.run_dir() / "STOP").close();
  c.thaw(job);
  const JobFields end = c.ends(job);
  c.equal(end.at("ExitCode"), "0:0", "exit code");
  c.equal(end.at("Restarts"), "0", "restarts");
  c.contains(c.job_log(), "stopped by the switch file STOP: not requeued");
  c.ends(c.submit());
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

void term_twice(Case& c) {
  const std::string job = c.submit();
  goes_on(c, job, [&] {
    c.slurm("scancel --signal=TERM " + job);
    c.slurm("scancel --signal=TERM " + job);
    c.slurm("scontrol requeue " + job);
  });
}

// The notice comes while the ranks are still starting.
void early_notice(Case& c) {
  const std::string job = c.submit();
  while (c.ranks_of(job).empty()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (c.cluster().wait(job, 0, [](const JobFields& f) { return f.at("JobState") == "COMPLETED"; })) break;
  }
  c.slurm("scancel --signal=USR1 " + job);
  c.ends(job);
  // Saved and requeued where the program was up, started again by the script where it was not.
  c.expect(c.events("start").size() + c.events("resume").size() >= 2 ||
               c.job_log().find("starting the ranks again") != std::string::npos,
           "the notice had no effect");
  c.same_as_quiet(2);
}

// Tasks one after the other; one that is told to stop leaves the rest to the next, the last ones are not needed.
void array_of_jobs(Case& c) {
  const std::string array = c.submit("--array 4");
  for (const char* task : {"_1", "_2"}) {
    c.freeze_at(array + task, c.last_logged_step() + Case::kFault);
    c.slurm("scancel --signal=USR1 " + c.number_of(array + task) + ".0");  // SLURM does not signal one task's job
    c.thaw(array + task);
    c.equal(c.ends(array + task).at("ExitCode"), "0:0", "exit code");
  }
  c.ends(array + "_3");
  c.no_step_lost(2);
  c.same_as_quiet(2);
}

// Two arrays for one folder: one after the other, and what is left of both goes when the run is done.
void two_arrays(Case& c) {
  const std::string first = c.submit("--array 2");
  c.freeze_at(first + "_1", Case::kFault);
  const std::string second = c.submit("--array 2");
  const auto waits = [](const JobFields& f) { return f.at("JobState") != "PENDING" || f.at("Reason") == "Dependency"; };
  const auto still_waits = [&](const std::string& when) {
    const auto fields = c.cluster().wait(second, 20, waits);
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
  const std::vector<std::string> jobs = c.submit_all("--chain 3");
  c.equal(jobs.size(), 3u, "jobs");
  c.freeze_at(jobs[0], Case::kFault);
  c.slurm("scancel --signal=USR1 " + jobs[0]);
  c.thaw(jobs[0]);
  c.ends(jobs[0]);
  c.ends(jobs[1]);
  c.ends(jobs[2], "CANCELLED");  // nothing left to do
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

// A job that waits for another by its number, whatever becomes of that.
void dependency(Case& c) {
  const std::string first = c.submit();
  c.site("SITE_SBATCH_OPTIONS=--dependency=afterany:" + first);
  const std::string second = c.submit();
  c.freeze_at(first, Case::kFault);
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
          {"TasksAreTold", tasks_are_told},
          {"TasksAreToldUnderMpirun", tasks_are_told_under_mpirun},
          {"Preemption", preemption},
          {"TimeLimit", time_limit},
          {"TimeLimitUnderMpirun", time_limit_under_mpirun},
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
