// Faults of ranks, nodes and files under SLURM.
#include <signal.h>

#include <algorithm>
#include <fstream>

#include "tests/slurm/case.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

void kill_all(const std::vector<int>& processes, int signal) {
  for (int process : processes) kill(process, signal);
}

// A rank of a job with these options gets a signal. The script starts the ranks again, without a requeue.
void signal_rank(Case& c, const std::string& options, int signal, const char* message) {
  const std::string job = c.submit_frozen(options);
  std::vector<int> ranks = c.ranks_of(job);
  c.fault();
  kill(ranks.at(0), signal);
  ranks.erase(ranks.begin());
  kill_all(ranks, SIGCONT);
  c.recovers();
  c.equal(c.ends(job).at("Restarts"), "0", "requeues");
  c.contains(c.job_log(), message);
  c.none_lost_but_since_checkpoint(1);
  c.same_as_quiet(2);
}

void rank_killed(Case& c) { signal_rank(c, "", SIGKILL, "restarting the ranks (1)"); }

void rank_frozen(Case& c) { signal_rank(c, "--set run.hang_timeout=8", SIGSTOP, "its process has stopped"); }

// What runs on a node of the job, by the node's own word.
std::vector<int> ranks_on(const std::vector<int>& ranks, const std::string& node) {
  std::vector<int> found;
  for (int rank : ranks) {
    if (environment_of(rank, "SLURMD_NODENAME") == node) found.push_back(rank);
  }
  return found;
}

// The number before this text in the job's log; empty where it is not there.
std::string number_before(const std::string& log, const std::string& text) {
  const size_t end = log.find(text);
  if (end == std::string::npos) return "";
  const size_t begin = log.find_last_not_of("0123456789", end - 1) + 1;
  return log.substr(begin, end - begin);
}

// A node fails, with its slurmd and its ranks: the job's script detects it, and another job continues without the node.
void node_lost(Case& c) {
  c.site("SITE_CONSTRAINT=lost");
  c.answer_seconds(6);
  const std::string job = c.submit_frozen();
  const std::vector<int> ranks = c.ranks_of(job);
  c.fault();
  c.cluster().kill_node("n6");
  const std::vector<int> gone = ranks_on(ranks, "n6");
  c.equal(gone.size(), 1u, "ranks on n6");
  kill_all(gone, SIGKILL);
  c.thaw(job);
  c.recovers();
  const std::string log = c.job_log();
  c.contains(log, "lost n6: job ");
  c.slurm("scontrol update NodeName=n6 State=DOWN Reason=killed");  // as SLURM would after SlurmdTimeout
  const JobFields other = c.ends(number_before(log, " resumes without"));
  c.equal(other.at("NodeList"), "n[5,7]", "nodes");
  c.equal(other.at("ExcNodeList"), "n6", "nodes left out");
  c.equal(other.at("Restarts"), "0", "restarts of the other job");
  c.equal(c.ends(job, "FAILED").at("Restarts"), "0", "restarts");
  c.none_lost_but_since_checkpoint(1);
  c.same_as_quiet(2);
}

// The slurmd of the job's first node fails. The script and the ranks on it live on and must not disturb the next
// attempt.
void first_node_lost(Case& c) {
  c.site("SITE_CONSTRAINT=beheaded");
  const std::string job = c.submit_frozen();
  c.fault();
  const std::vector<int> ranks = c.ranks_of(job);
  c.cluster().kill_node("n8");
  c.slurm("scontrol update NodeName=n8 State=DOWN Reason=killed");
  c.restarted(job);
  kill_all(ranks, SIGCONT);
  c.recovers();
  const JobFields end = c.ends(job);
  c.equal(end.at("Restarts"), "1", "restarts");
  c.equal(end.at("NodeList"), "n[9-10]", "nodes");
  c.same_as_quiet(2);
}

// Two jobs in one folder, against submit's rules, where the first wakes up after the second has taken over.
void two_jobs_in_one_run_directory(Case& c) {
  const std::string first = c.submit_frozen("", 1);
  c.ends(c.sbatch("--job-name=second run/job.sbatch"));
  const size_t checkpoints = c.events("checkpoint").size();
  c.thaw(first);
  const JobFields end = c.ends(first, "FAILED");
  c.equal(end.at("ExitCode"), "93:0", "exit code");  // no other start of it: it would take the folder back
  c.equal(end.at("Restarts"), "0", "restarts");
  c.contains(c.job_log(), "another attempt of this run has taken over its run directory");
  // It may yet tell of one that was whole before it was frozen: the one that the other start came from.
  c.expect(c.events("checkpoint").size() <= checkpoints + 1, "the job that came late has made checkpoints");
  c.same_as_quiet(1);
}

// Three attempts that fail alike are enough, for the job and for those that wait for it. A spike ends each of them.
void crash_loop(Case& c) {
  const std::vector<std::string> jobs = c.submit_all(
      "--chain 2 --set train.spike_window=2 --set train.spike_sigmas=1e-9 --set train.max_skips=1 --set "
      "checkpoint.every=0");
  const JobFields end = c.ends(jobs[0], "FAILED");
  c.equal(end.at("ExitCode"), "93:0", "exit code");
  c.equal(end.at("Restarts"), "0", "requeues");
  c.contains(c.job_log(), "restarting the ranks (3)");
  c.contains(c.job_log(), "3 attempts of this run have ended");
  c.contains(c.job_log(), "exit code 93: not restarted");
  c.expect(c.job_log().find("ranks again (4)") == std::string::npos, "started a fifth time");
  c.ends(jobs[1], "CANCELLED");
}

// A configuration that went bad while the job was waiting.
void bad_configuration(Case& c) {
  c.site("SITE_SBATCH_OPTIONS=--hold");
  const std::string job = c.submit();
  std::ofstream(c.folder() / "run.toml", std::ios::app) << "thread = 1\n";
  c.slurm("scontrol release " + job);
  const JobFields end = c.ends(job, "FAILED");
  c.equal(end.at("ExitCode"), "2:0", "exit code");
  c.contains(c.job_log(), "did you mean");
  c.contains(c.job_log(), "exit code 2: not restarted");
}

// The checkpoint that the job saved on its stop signal is damaged before the job is requeued.
void damaged_checkpoint(Case& c) {
  const std::string job = c.submit_frozen();
  c.slurm("scontrol requeuehold " + job);
  c.wait_until("the run stops", [&] { return !c.events("stop").empty(); });
  const int64_t saved = c.events("stop").back()["step"];
  char name[32];
  std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(saved));
  const fs::path file = c.run_dir() / "checkpoints" / name / "rank-00000.h5";
  std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
  const auto middle = static_cast<std::streamoff>(fs::file_size(file) / 2);
  bytes.seekg(middle);
  const int byte = bytes.get();
  bytes.seekp(middle);
  bytes.put(static_cast<char>(byte ^ 0x10));
  bytes.close();
  c.cluster().wait(job, Case::kLimit, [](const JobFields& f) { return f.at("JobState") == "PENDING"; });
  c.slurm("scontrol release " + job);
  c.ends(job);
  c.contains(c.job_log(), "is damaged and was set aside");
  c.expect(saved - c.events("resume").at(0)["step"].get<int64_t>() <= Case::kEvery, "too many steps lost");
  c.same_as_quiet(2);
}

}  // namespace

std::vector<CaseEntry> fault_cases() {
  return {{"NodeLost", node_lost, true},
          {"FirstNodeLost", first_node_lost},
          {"RankKilled", rank_killed},
          {"RankFrozen", rank_frozen},
          {"TwoJobsInOneRunDirectory", two_jobs_in_one_run_directory},
          {"CrashLoop", crash_loop},
          {"BadConfiguration", bad_configuration},
          {"DamagedCheckpoint", damaged_checkpoint}};
}

}  // namespace tmamba
