#include "tests/slurm/case.h"

#include <signal.h>

#include <fstream>
#include <sstream>
#include <stdexcept>

#include "kernels/base/clock.h"

namespace tmamba {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

namespace {

// Calls look() until it is true; false after `seconds`.
bool poll(double seconds, const std::function<bool()>& look) {
  const auto until = Clock::now() + std::chrono::duration<double>(seconds);
  while (!look()) {
    if (Clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

// Lines of a log that another process may be writing.
std::vector<nlohmann::json> json_lines(const fs::path& file) {
  std::istringstream in(read_file(file));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) {
    nlohmann::json value = nlohmann::json::parse(line, nullptr, false);
    if (value.is_object()) lines.push_back(std::move(value));
  }
  return lines;
}

int64_t last_step(const fs::path& run) {
  const std::string text = read_file(run / "metrics.jsonl");
  const size_t found = text.rfind("\"step\":");
  return found == std::string::npos ? 0 : std::atoll(text.c_str() + found + 7);
}

// The part of a line that does not depend on the machine.
nlohmann::json results_of(const nlohmann::json& line) {
  nlohmann::json kept;
  for (const char* key : {"step", "loss", "grad_norm", "lr", "tokens"}) kept[key] = line.value(key, nlohmann::json());
  return kept;
}

}  // namespace

void write_case_config(const fs::path& folder, const fs::path& data) {
  std::ofstream(folder / "run.toml")
      << "[model]\ndim = 16\nheads = 2\nlayers = 2\nffn = 24\nchunk = 16\nschedule = [\"1/2\", \"1/1\"]\n"
      << "[data]\ntrain = \"" << (data / "train.h5").string() << "\"\nseq_len = 32\n"
      << "[train]\nwarmup = 5\nlr = 3e-3\nglobal_batch = 8\nsample_tokens = 2\nsteps = " << Case::kSteps << "\n"
      << "[checkpoint]\nevery = " << Case::kEvery << "\nkeep = 0\n[run]\ndir = \"run\"\nthreads = 1\n";
}

fs::path QuietRuns::run_of(int ranks, int64_t steps) {
  const std::lock_guard lock(mutex_);
  fs::path& run = runs_[{ranks, steps}];
  if (run.empty()) {
    run = folder_ / ("quiet-" + std::to_string(ranks) + "-" + std::to_string(steps));
    const Outcome outcome = shell(
        "cd '" + folder_.string() + "' && OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1 " +
        command_line("train run.toml --set train.steps=" + std::to_string(steps) + " --set run.dir=" + run.string(),
                     ranks));
    if (outcome.code != 0) throw std::runtime_error("the quiet run failed: " + outcome.output);
  }
  return run;
}

Case::Case(VirtualCluster& cluster, QuietRuns& quiet, const std::string& name)
    : cluster_(cluster), quiet_(quiet), folder_(cluster.folder() / name) {
  fs::create_directories(folder_);
  write_case_config(folder_, cluster.folder() / "data");
  site_ = "SITE_CONSTRAINT=common\nSITE_TIME=10\nSITE_SIGNAL_SECONDS=0\nSITE_RANKS_PER_NODE=1\n";
  answer_seconds(30);
}

void Case::answer_seconds(int seconds) {
  site("SITE_SETUP='export SITE_ANSWER_SECONDS=" + std::to_string(seconds) +
       " LD_PRELOAD=" TMAMBA_FAULTS " FAULTS=" + folder_.string() + "'");
}

Outcome Case::try_submit(const std::string& options, int nodes) {
  std::ofstream(folder_ / "site.env") << site_;
  return cluster_.run(folder_, command_line("submit run.toml --site site.env --nodes " + std::to_string(nodes) +
                                                " --set train.steps=" + std::to_string(steps_) + " " + options,
                                            0));
}

std::vector<std::string> Case::submit_all(const std::string& options, int nodes) {
  const Outcome outcome = try_submit("--json " + options, nodes);
  const nlohmann::json answer = nlohmann::json::parse(outcome.output, nullptr, false);
  if (outcome.code != 0 || !answer.is_object()) throw std::runtime_error("submit: " + outcome.output);
  return answer["jobs"].get<std::vector<std::string>>();
}

std::string Case::sbatch(const std::string& arguments) {
  const Outcome outcome = cluster_.run(folder_, "sbatch --parsable " + arguments);
  if (outcome.code != 0) throw std::runtime_error("sbatch: " + outcome.output);
  return outcome.output.substr(0, outcome.output.find('\n'));
}

int64_t Case::last_logged_step() const { return last_step(run_dir()); }

void Case::wait_until(const std::string& what, const std::function<bool()>& condition) {
  if (!poll(kLimit, condition)) throw std::runtime_error("waited in vain: " + what);
}

namespace {
std::string environment_line(const std::string& job) {
  const size_t task = job.find('_');
  return task == std::string::npos ? "SLURM_JOB_ID=" + job : "SLURM_ARRAY_JOB_ID=" + job.substr(0, task);
}
}  // namespace

std::vector<int> Case::ranks_of(const std::string& job) const { return cluster_.ranks_with(environment_line(job)); }

void Case::signal_tasks(const std::string& job, int signal) {
  const std::vector<int> tasks = cluster_.tasks_with(environment_line(job));
  if (tasks.empty()) throw std::runtime_error("no task of job " + job + " is there to be told");
  for (int task : tasks) kill(task, signal);
}

void Case::hold(int64_t step) {
  fs::remove(folder_ / "held");
  std::ofstream(folder_ / "hold.new") << step << "\n";
  fs::rename(folder_ / "hold.new", folder_ / "hold");
}

void Case::freeze(const std::string& job) {
  wait_until("the run stops itself", [&] {
    const int rank = std::atoi(read_file(folder_ / "held").c_str());
    return rank > 0 &&
           read_file(fs::path("/proc") / std::to_string(rank) / "status").find("\nState:\tT") != std::string::npos;
  });
  for (int rank : ranks_of(job)) kill(rank, SIGSTOP);
}

std::string Case::submit_frozen(const std::string& options, int nodes) {
  hold(kFault);
  std::string job = submit(options, nodes);
  freeze(job);
  return job;
}

void Case::release(const std::string& job) {
  if (!fs::remove(folder_ / "hold")) freeze(job);
  thaw(job);
}

void Case::thaw(const std::string& job) {
  for (int rank : ranks_of(job)) kill(rank, SIGCONT);
}

std::string Case::number_of(const std::string& job) {
  const auto fields = cluster_.wait(job, kLimit, [](const JobFields&) { return true; });
  if (!fields) throw std::runtime_error("there is no job " + job);
  return fields->at("JobId");
}

void Case::slurm(const std::string& command) {
  const Outcome outcome = cluster_.run(folder_, command);
  if (outcome.code != 0) throw std::runtime_error(command + ": " + outcome.output);
}

JobFields Case::ends(const std::string& job, const std::string& state) {
  static const std::vector<std::string> kEnds{"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE"};
  std::string last = "unknown";
  const auto fields = cluster_.wait(job, kLimit, [&](const JobFields& now) {
    last = now.at("JobState");
    return last == state || std::find(kEnds.begin(), kEnds.end(), last) != kEnds.end();
  });
  if (!fields || fields->at("JobState") != state) {
    throw std::runtime_error("job " + job + " is " + last + ", not " + state);
  }
  return *fields;
}

void Case::restarted(const std::string& job) {
  if (!cluster_.wait(job, kLimit, [](const JobFields& f) { return f.at("Restarts") == "1"; })) {
    throw std::runtime_error("job " + job + " was not requeued");
  }
}

void Case::fault() {
  resumptions_ = events("resume").size();
  fault_ = Clock::now();
}

void Case::recovers() {
  wait_until("the run resumes", [&] {
    const std::vector<nlohmann::json> all = events("resume");
    return all.size() > resumptions_ && last_step(run_dir()) > all.back().value("step", int64_t{0});
  });
  std::ostringstream text;
  text << "first new step after " << static_cast<int>(seconds_since(fault_) * 10) / 10.0 << " s";
  note(text.str());
}

std::vector<nlohmann::json> Case::events(const std::string& kind) const {
  std::vector<nlohmann::json> found;
  for (nlohmann::json& event : json_lines(run_dir() / "events.jsonl")) {
    if (kind.empty() || event.value("event", "") == kind) found.push_back(std::move(event));
  }
  return found;
}

std::string Case::job_log() const {
  std::string text;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(run_dir(), ignored)) {
    if (entry.path().filename().string().starts_with("slurm-")) text += read_file(entry.path());
  }
  return text;
}

void Case::same_as_quiet(int ranks) {
  const auto steps_of = [](const fs::path& file) {
    std::vector<nlohmann::json> lines = json_lines(file);
    std::erase_if(lines, [](const nlohmann::json& line) { return !line.contains("loss"); });
    return lines;
  };
  const std::vector<nlohmann::json> quiet = steps_of(quiet_run(ranks) / "metrics.jsonl"),
                                    own = steps_of(run_dir() / "metrics.jsonl");
  equal(quiet.size(), static_cast<size_t>(steps_), "steps of the quiet run");
  equal(own.size(), quiet.size(), "steps in metrics.jsonl");
  for (size_t i = 0; i < std::min(own.size(), quiet.size()); ++i) {
    if (results_of(own[i]) == results_of(quiet[i])) continue;
    return expect(false, "line " + std::to_string(i + 1) + " of metrics.jsonl is " + results_of(own[i]).dump() +
                             ", the quiet run's " + results_of(quiet[i]).dump());
  }
}

void Case::no_step_lost(size_t resumptions) {
  equal(events("resume").size(), resumptions, "resumptions");
  int64_t stopped = -1;
  for (const nlohmann::json& event : events()) {
    if (event["event"] == "stop") stopped = event["step"];
    if (event["event"] == "resume") equal(event["step"].get<int64_t>(), stopped, "step resumed from");
  }
}

void Case::none_lost_but_since_checkpoint(size_t resumptions) {
  equal(events("resume").size(), resumptions, "resumptions");
  int64_t saved = -1;
  for (const nlohmann::json& event : events()) {
    if (event["event"] == "checkpoint") saved = event["step"];
    // A checkpoint may be complete before its event is written.
    if (event["event"] == "resume") {
      const int64_t step = event["step"];
      expect(
          step == saved || step == saved + kEvery,
          "resumed from step " + std::to_string(step) + ", the latest checkpoint was that of " + std::to_string(saved));
    }
  }
}

void Case::expect(bool condition, const std::string& what) {
  if (!condition) problems_.push_back(what);
}

void Case::contains(const std::string& text, const std::string& part) {
  expect(text.find(part) != std::string::npos, "\"" + part + "\" is missing in:\n" + text);
}

std::string Case::story() const {
  std::string text = "events:\n" + read_file(run_dir() / "events.jsonl") + "job log:\n";
  std::string jobs = job_log();
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder_ / "out" / "jobs", ignored)) {  // of a study
    if (entry.path().extension() == ".log") jobs += entry.path().filename().string() + ":\n" + read_file(entry.path());
  }
  std::istringstream log(jobs);
  for (std::string line; std::getline(log, line);) {
    if (line.find("  ETA ") == std::string::npos) text += line + "\n";
  }
  return text;
}

}  // namespace tmamba
