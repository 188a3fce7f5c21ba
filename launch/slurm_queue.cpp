#include "launch/slurm_queue.h"

#include <unistd.h>

#include <sstream>

#include "kernels/base/check.h"
#include "launch/subprocess.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

std::string first_lines(const std::string& text) {
  std::string out = text.substr(0, 2000);
  while (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

// What SLURM is asked, or the error that it does not answer.
std::string ask(const std::vector<std::string>& arguments) {
  const ProgramOutput output = run_program(arguments);
  if (output.code != 0) {
    throw UserError(str(arguments[0], ": ", first_lines(output.text),
                        "\nIs this a login node of the cluster, and does ",
                        "SLURM run? --dry-run prints the job script without it"));
  }
  return output.text;
}

// Partitions by name with their nodes, as sinfo has them; "*" marks the one that is taken without a name.
void require_partition(const JobSpec& job) {
  std::istringstream lines(ask({"sinfo", "--noheader", "--format=%R %D"}));
  std::string names;
  bool known = job.site.partition.empty();
  int64_t most = 0;
  std::string name;
  for (int64_t nodes = 0; lines >> name >> nodes;) {
    if (names.find(" " + name) == std::string::npos) names += " " + name;
    if (!job.site.partition.empty() && name != job.site.partition) continue;
    known = true;
    most += nodes;
  }
  if (!known) throw UserError(str("there is no partition ", job.site.partition, " (SITE_PARTITION); there are", names));
  if (job.nodes > most) {
    throw UserError(str(job.nodes, " nodes are asked for, but ",
                        job.site.partition.empty() ? "the cluster" : "partition " + job.site.partition, " has ", most,
                        most == 1 ? " node" : " nodes"));
  }
}

void require_slurm() {
  for (const char* program : {"sbatch", "sinfo", "squeue"}) {
    if (find_program(program).empty()) {
      throw UserError(str(program, " was not found: there is no SLURM on this machine. Submit on a login node of the ",
                          "cluster, or take --dry-run, which prints the job script"));
    }
  }
}

}  // namespace

void require_room(const JobSpec& job) {
  require_slurm();
  require_partition(job);
}

void require_one_name(const JobSpec& job) {
  const std::string mark = job.name.substr(job.name.rfind('-'));
  std::istringstream lines(
      ask({"squeue", "--noheader", str("--user=", getuid()), "--states=PENDING,RUNNING,SUSPENDED", "--format=%i %j"}));
  for (std::string number, name; lines >> number && std::getline(lines >> std::ws, name);) {
    while (name.ends_with(' ')) name.pop_back();
    if (name == job.name || !name.ends_with(mark)) continue;
    throw UserError(str("job ", number, " of the run folder ", job.run_dir, " has the name ", name,
                        ", and one of another name would not wait for it: leave out --name or give the same, or ",
                        "cancel that job"));
  }
}

std::map<std::string, std::string> queued_jobs(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ",") + name;
  std::istringstream lines(ask({"squeue", "--noheader", str("--user=", getuid()), "--name=" + list, "--format=%i %j"}));
  std::map<std::string, std::string> jobs;
  for (std::string number, name; lines >> number >> name;) jobs[name] = number;
  return jobs;
}

// Numbers of the jobs that were submitted, in the order they run in.
std::vector<std::string> submit_jobs(const fs::path& file, int64_t count) {
  const ProgramOutput test = run_program({"sbatch", "--test-only", file.string()});
  if (test.code != 0) {
    throw UserError(
        str("SLURM would refuse this job (sbatch --test-only ", file.string(), "): ", first_lines(test.text)));
  }
  std::vector<std::string> numbers;
  for (int64_t i = 0; i < count; ++i) {
    std::string number = ask({"sbatch", "--parsable", file.string()});
    number = number.substr(0, number.find_first_of(";\n"));
    numbers.push_back(number);
  }
  return numbers;
}

}  // namespace tmamba
