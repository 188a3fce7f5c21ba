// class VirtualCluster: a SLURM of virtual nodes (cluster.sh) that lives as long as the object, and the state of its
// jobs.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/launch/program.h"

namespace tmamba {

// The output of `scontrol show job`, by field.
using JobFields = std::map<std::string, std::string>;

class VirtualCluster {
 public:
  // One node for each feature. Throws if the cluster does not start.
  explicit VirtualCluster(const std::vector<std::string>& features);
  ~VirtualCluster();
  VirtualCluster(const VirtualCluster&) = delete;
  VirtualCluster& operator=(const VirtualCluster&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  double start_seconds() const { return start_seconds_; }

  // Runs a shell command in `where` as a user of the cluster.
  Outcome run(const std::filesystem::path& where, const std::string& command) const;
  void kill_node(const std::string& node) const;

  // Waits until the fields of a job, or of a task of an array ("7_1"), satisfy `condition`; nothing after `seconds`.
  std::optional<JobFields> wait(const std::string& job, double seconds,
                                const std::function<bool(const JobFields&)>& condition);
  // Processes of transmamba in this cluster whose environment has this line ("SLURM_JOB_ID=7").
  std::vector<int> ranks_with(const std::string& line) const;
  // Those that SLURM itself started, whatever their program: the script of a batch job, the tasks of a step.
  std::vector<int> tasks_with(const std::string& line) const;

 private:
  void watch();
  std::vector<int> processes_with(const std::string& line, const std::function<bool(int)>& wanted) const;

  std::filesystem::path folder_;
  double start_seconds_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, JobFields> jobs_;
  std::atomic<bool> stopping_ = false;
  std::thread watcher_;
};

std::string environment_of(int process, const std::string& name);

}  // namespace tmamba
