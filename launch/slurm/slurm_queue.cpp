#include "launch/slurm/slurm_queue.h"

#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <limits>
#include <set>
#include <sstream>

#include "data/io/fs.h"
#include "kernels/base/check.h"
#include "launch/cli/child_process.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

std::string first_lines(const std::string& text) {
  std::string out = text.substr(0, 2000);
  while (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

// Runs a SLURM command and returns its output. Throws UserError if it fails.
std::string query(const std::vector<std::string>& arguments) {
  const ChildEnd output = run_child({.command = arguments});
  if (output.exit_code != 0) {
    throw UserError(str(arguments[0], ": ", first_lines(output.text),
                        "\nCheck that this is a login node of the cluster and that ",
                        "SLURM runs; --dry-run prints the job script without it"));
  }
  return output.text;
}

struct Partition {
  std::set<std::string> nodes;
  std::string limit;  // of a job's time, in SLURM's notation
};

// The partitions that sinfo lists, and the name of the default one (empty: there is none).
struct Partitions {
  std::map<std::string, Partition> by_name;
  std::string default_name;
};

Partitions ask_partitions() {
  // One line per node and partition; "*" marks the default partition.
  std::istringstream lines(query({"sinfo", "--all", "--noheader", "--Node", "--format=%P %l %N"}));
  Partitions partitions;
  for (std::string name, limit, node; lines >> name >> limit >> node;) {
    if (name.back() == '*') {
      name.pop_back();
      partitions.default_name = name;
    }
    partitions.by_name[name].nodes.insert(node);
    partitions.by_name[name].limit = limit;
  }
  return partitions;
}

// The value that sbatch uses for this option: its environment variable, else the last #SBATCH line.
std::string effective(const JobSpec& job, const std::string& name, const char* variable, std::string value) {
  for (const std::string& option : job.site.sbatch_options) {
    if (option.starts_with("--" + name + "=")) value = option.substr(name.size() + 3);
  }
  const char* set = std::getenv(variable);
  return set != nullptr && *set != '\0' ? set : value;
}

// The partitions in which the job may run: the comma-separated list that it names, else the default one.
std::vector<std::string> wanted_partitions(const JobSpec& job, const Partitions& partitions) {
  std::istringstream names(effective(job, "partition", "SBATCH_PARTITION", job.site.partition));
  std::vector<std::string> wanted;
  for (std::string name; std::getline(names, name, ',');) {
    if (!partitions.by_name.contains(name)) {
      std::string all;
      for (const auto& [known, unused] : partitions.by_name) all += " " + known;
      throw UserError(str("unknown partition ", name, " (SITE_PARTITION); valid:", all));
    }
    wanted.push_back(name);
  }
  if (wanted.empty() && !partitions.default_name.empty()) wanted.push_back(partitions.default_name);
  return wanted;
}

void require_nodes(const JobSpec& job, const std::string& name, const Partition& partition) {
  const auto nodes = std::ssize(partition.nodes);
  if (job.nodes <= nodes) return;
  throw UserError(str("--nodes ", job.nodes, ": partition ", name, " has ", nodes, nodes == 1 ? " node" : " nodes",
                      "; use fewer nodes or another partition"));
}

// A QOS may lift the time limit of a partition.
bool qos_lifts_limits(const JobSpec& job) {
  const std::string qos = effective(job, "qos", "SBATCH_QOS", job.site.qos);
  if (qos.empty() || find_program("sacctmgr").empty()) return false;
  const ChildEnd flags =
      run_child({.command = {"sacctmgr", "--noheader", "--parsable2", "show", "qos", qos, "format=flags"}});
  return flags.exit_code == 0 && flags.text.find("PartitionTimeLimit") != std::string::npos;
}

// SLURM accepts a job with a longer time limit than its partition allows, and never starts it.
void require_time(const JobSpec& job, const std::string& name, const Partition& partition) {
  const std::string time = effective(job, "time", "SBATCH_TIMELIMIT", job.site.time);
  const std::optional<int64_t> asked = slurm_minutes(time), most = slurm_minutes(partition.limit);
  if (!asked || !most || *asked <= *most || qos_lifts_limits(job)) return;
  throw UserError(str("time limit ", time, ": partition ", name, " ends jobs after ", partition.limit,
                      ", and SLURM would never start this one. Set --time ", partition.limit,
                      " or less (SITE_TIME); the job is requeued and the run resumes"));
}

// Succeeds if any of the job's partitions can run it, as SLURM picks one that can.
void require_partition(const JobSpec& job) {
  const Partitions partitions = ask_partitions();
  std::exception_ptr problem;
  for (const std::string& name : wanted_partitions(job, partitions)) {
    try {
      require_nodes(job, name, partitions.by_name.at(name));
      require_time(job, name, partitions.by_name.at(name));
      return;
    } catch (const UserError&) {
      problem = std::current_exception();
    }
  }
  if (problem) std::rethrow_exception(problem);
}

// A job script under a temporary name until SLURM would accept it. Unless keep() is called, its destructor removes it
// and the directories it made: a running job may still resubmit the script under the final name.
class Draft {
 public:
  Draft(fs::path target, const std::string& script)
      : target_(std::move(target)), file_(target_.string() + ".new-" + random_nonce()) {
    for (fs::path folder = target_.parent_path(); !fs::exists(folder); folder = folder.parent_path())
      new_folders_.push_back(folder);
    try {
      make_folders(target_.parent_path());
      write_text_durably(file_, script);
    } catch (const FileError& error) {
      clear();
      throw UserError(str(error.what(), ": the job script cannot be written; check run.dir"));
    }
  }
  ~Draft() {
    if (!kept_) clear();
  }
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;
  const fs::path& file() const { return file_; }
  void keep() {
    fs::rename(file_, target_);
    kept_ = true;
    sync_folder(target_.parent_path());
  }

 private:
  void clear() const {
    std::error_code ignored;
    fs::remove(file_, ignored);
    for (const fs::path& folder : new_folders_) fs::remove(folder, ignored);
  }
  fs::path target_, file_;
  std::vector<fs::path> new_folders_;  // deepest first
  bool kept_ = false;
};

void require_slurm() {
  for (const char* program : {"sbatch", "sinfo", "squeue"}) {
    if (find_program(program).empty()) {
      throw UserError(str(program,
                          " was not found: this machine has no SLURM. Submit on a login node of the cluster, or ",
                          "use --dry-run, which prints the job script"));
    }
  }
}

}  // namespace

std::optional<int64_t> slurm_minutes(const std::string& limit) {
  constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  if (limit == "infinite" || limit == "UNLIMITED" || limit == "INFINITE" || limit == "-1") return kNoLimit;
  const size_t dash = limit.find('-');
  std::vector<int64_t> numbers;
  std::istringstream fields(dash == std::string::npos ? limit : limit.substr(dash + 1));
  const auto number_in = [](const std::string& text) -> std::optional<int64_t> {
    if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos) return {};
    return std::stoll(text);
  };
  for (std::string field; std::getline(fields, field, ':');) {
    const std::optional<int64_t> number = number_in(field);
    if (!number) return {};
    numbers.push_back(*number);
  }
  if (numbers.empty() || numbers.size() > 3) return {};
  int64_t seconds = 0;
  if (dash != std::string::npos) {  // days-hours, days-hours:minutes, days-hours:minutes:seconds
    const std::optional<int64_t> days = number_in(limit.substr(0, dash));
    if (!days) return {};
    numbers.resize(3);
    seconds = *days * 86400;
  } else if (numbers.size() < 3) {  // minutes, minutes:seconds
    numbers.insert(numbers.begin(), 0);
    numbers.resize(3);
  }
  seconds += (numbers[0] * 60 + numbers[1]) * 60 + numbers[2];
  return seconds == 0 ? kNoLimit : ceil_div(seconds, int64_t{60});
}

void require_room(const JobSpec& job) {
  require_slurm();
  require_partition(job);
}

void require_one_name(const JobSpec& job) {
  const std::string mark = job.name.substr(job.name.rfind('-'));
  std::istringstream lines(query(
      {"squeue", "--noheader", str("--user=", getuid()), "--states=PENDING,RUNNING,SUSPENDED", "--format=%i %j"}));
  for (std::string number, name; lines >> number && std::getline(lines >> std::ws, name);) {
    while (name.ends_with(' ')) name.pop_back();
    if (name == job.name || !name.ends_with(mark)) continue;
    throw UserError(str("job ", number, " of the run directory ", job.run_dir, " is named ", name,
                        ", and a job with another name would not wait for it: omit --name or use the same, or ",
                        "cancel that job"));
  }
}

std::map<std::string, std::string> queued_jobs(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ",") + name;
  std::istringstream lines(
      query({"squeue", "--noheader", str("--user=", getuid()), "--name=" + list, "--format=%i %j"}));
  std::map<std::string, std::string> jobs;
  for (std::string number, name; lines >> number >> name;) jobs[name] = number;
  return jobs;
}

std::vector<std::string> submit_jobs(const fs::path& file, const std::string& script, int64_t count) {
  {
    Draft draft(file, script);
    const ChildEnd test = run_child({.command = {"sbatch", "--test-only", draft.file().string()}});
    if (test.exit_code != 0) {
      throw UserError(str("SLURM would refuse this job (sbatch --test-only): ", first_lines(test.text),
                          "\n--dry-run prints the job script"));
    }
    draft.keep();
  }
  std::vector<std::string> numbers;
  for (int64_t i = 0; i < count; ++i) {
    std::string number = query({"sbatch", "--parsable", file.string()});
    number = number.substr(0, number.find_first_of(";\n"));
    numbers.push_back(number);
  }
  return numbers;
}

}  // namespace tmamba
