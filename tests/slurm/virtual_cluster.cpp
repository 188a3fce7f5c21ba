#include "tests/slurm/virtual_cluster.h"

#include <unistd.h>

#include <fstream>
#include <sstream>
#include <stdexcept>

#include "kernels/base/clock.h"
#include "tests/source_dir.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

std::string script() { return std::string("'") + TMAMBA_SOURCE_DIR + "/tests/slurm/cluster.sh' "; }

JobFields fields_of(const std::string& line) {
  JobFields fields;
  std::istringstream words(line);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals != std::string::npos) fields.emplace(word.substr(0, equals), word.substr(equals + 1));
  }
  return fields;
}

}  // namespace

VirtualCluster::VirtualCluster(const std::vector<std::string>& features)
    : folder_(fs::temp_directory_path() / ("tmamba-slurm-" + std::to_string(getpid()))) {
  fs::remove_all(folder_);  // of a killed process with the same number
  std::string command = "OWNER=" + std::to_string(getpid()) + " " + script() + "start " + folder_.string();
  for (const std::string& feature : features) command += " " + feature;
  const auto begin = std::chrono::steady_clock::now();
  const Outcome outcome = shell(command);
  if (outcome.code != 0) throw std::runtime_error("the cluster does not start: " + outcome.output);
  start_seconds_ = seconds_since(begin);
  watcher_ = std::thread([this] { watch(); });
}

VirtualCluster::~VirtualCluster() {
  stopping_ = true;
  if (watcher_.joinable()) watcher_.join();
  const Outcome outcome = shell(script() + "stop " + folder_.string());
  if (outcome.code != 0) std::fprintf(stderr, "the cluster does not stop: %s\n", outcome.output.c_str());
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

Outcome VirtualCluster::run(const fs::path& where, const std::string& command) const {
  return shell("source() { . \"$1\"; }; cd '" + where.string() + "' && source '" + folder_.string() +
               "/ranks.env' && " + command);
}

void VirtualCluster::kill_node(const std::string& node) const {
  shell(script() + "kill-node " + folder_.string() + " " + node);
}

// One query for all jobs, four times a second.
void VirtualCluster::watch() {
  while (!stopping_) {
    const Outcome outcome = run(folder_, "scontrol --oneliner --all show job");
    {
      const std::lock_guard lock(mutex_);
      std::istringstream lines(outcome.output);
      for (std::string line; std::getline(lines, line);) {
        const JobFields fields = fields_of(line);
        if (!fields.contains("JobId")) continue;
        jobs_[fields.at("JobId")] = fields;
        if (fields.contains("ArrayTaskId")) jobs_[fields.at("ArrayJobId") + "_" + fields.at("ArrayTaskId")] = fields;
      }
    }
    changed_.notify_all();
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
  }
}

std::optional<JobFields> VirtualCluster::wait(const std::string& job, double seconds,
                                              const std::function<bool(const JobFields&)>& condition) {
  std::unique_lock lock(mutex_);
  const bool satisfied = changed_.wait_for(lock, std::chrono::duration<double>(seconds), [&] {
    const auto found = jobs_.find(job);
    return found != jobs_.end() && condition(found->second);
  });
  if (!satisfied) return std::nullopt;
  return jobs_[job];
}

namespace {

std::string command_of(int process) { return read_file(fs::path("/proc") / std::to_string(process) / "comm"); }

}  // namespace

// Other clusters on this machine have jobs of the same numbers.
std::vector<int> VirtualCluster::processes_with(const std::string& line, const std::function<bool(int)>& wanted) const {
  const std::string ours = "SLURM_CONF=" + (folder_ / "slurm.conf").string();
  std::vector<int> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos || !wanted(std::stoi(name))) continue;
    const std::string environment = '\0' + read_file(entry.path() / "environ");
    const auto has = [&](const std::string& text) { return environment.find('\0' + text + '\0') != std::string::npos; };
    if (has(line) && has(ours)) found.push_back(std::stoi(name));
  }
  return found;
}

std::vector<int> VirtualCluster::ranks_with(const std::string& line) const {
  return processes_with(line, [](int process) { return command_of(process) == "transmamba\n"; });
}

std::vector<int> VirtualCluster::tasks_with(const std::string& line) const {
  return processes_with(line, [](int process) {
    // PID (COMMAND) STATE PARENT ...
    const std::string stat = read_file(fs::path("/proc") / std::to_string(process) / "stat");
    const size_t state = stat.rfind(") ");
    return state != std::string::npos && command_of(std::atoi(stat.c_str() + state + 4)) == "slurmstepd\n" &&
           command_of(process) != "slurmstepd\n";
  });
}

std::string environment_of(int process, const std::string& name) {
  std::istringstream environment(read_file(fs::path("/proc") / std::to_string(process) / "environ"));
  for (std::string entry; std::getline(environment, entry, '\0');) {
    if (entry.starts_with(name + "=")) return entry.substr(name.size() + 1);
  }
  return "";
}

}  // namespace tmamba
