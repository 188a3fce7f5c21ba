#include "launch/slurm/job_script.h"

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "data/io/sha256.h"
#include "kernels/base/check.h"

namespace tmamba {

namespace {

bool plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string("_-.:=,@+%").find(c) != std::string::npos;
}

void require_one_line(const std::string& text) {
  for (char c : text) {
    if (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f) continue;
    throw UserError(str("\"", text, "\" contains a line break or another control character, which a job script ",
                        "cannot hold; rename it"));
  }
}

class Script {
 public:
  void line(const std::string& text) { out_ << text << "\n"; }
  // Writes an #SBATCH line if `value` is not empty.
  void option(const std::string& name, const std::string& value) {
    if (value.empty()) return;
    const bool bare = std::all_of(value.begin(), value.end(), plain);
    line(str("#SBATCH --", name, "=", bare ? value : sbatch_quoted(value)));
  }
  void variable(const std::string& name, const std::string& value) {
    if (!value.empty()) line(name + "=" + shell_quoted(value));
  }
  std::string text() const { return out_.str(); }

 private:
  std::ostringstream out_;
};

std::string quoted_words(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    require_one_line(word);
    text += (text.empty() ? "" : " ") + shell_quoted(word);
  }
  return text;
}

// The log of the job, to which every attempt appends.
std::string log_file(const JobSpec& job) {
  if (job.run_dir.find('\\') != std::string::npos) {
    throw UserError(str("run.dir = ", job.run_dir,
                        ": SLURM cannot write its log into a directory with a \\ in its name; choose another run.dir"));
  }
  const std::string quoted = sbatch_quoted(job.run_dir, /*pattern=*/true);
  return quoted.substr(0, quoted.size() - 1) + "/" + job.log + (job.array > 0 ? "-%A_%a.log\"" : "-%j.log\"");
}

// Returns what starts the ranks: srun, mpirun, or the program itself.
std::string launcher_of(const JobSpec& job) { return job.starts_ranks ? "program" : job.site.launcher; }

void write_gpus(Script& script, const Site& site) {
  if (site.gpus_per_node == 0) return;
  const std::string count = (site.gpu_type.empty() ? "" : site.gpu_type + ":") + std::to_string(site.gpus_per_node);
  if (site.gpu_option == "gres") {
    script.option("gres", "gpu:" + count);
  } else {
    script.option("gpus-per-node", count);
  }
}

void write_head(Script& script, const JobSpec& job) {
  const Site& site = job.site;
  script.option("job-name", job.name);
  script.line("#SBATCH --output=" + log_file(job));
  script.line("#SBATCH --open-mode=append");
  script.option("nodes", std::to_string(job.nodes));
  script.option("ntasks-per-node", std::to_string(job.ranks_per_node));
  if (site.cpus_per_rank > 0) script.option("cpus-per-task", std::to_string(site.cpus_per_rank));
  write_gpus(script, site);
  script.option("partition", site.partition);
  script.option("account", site.account);
  script.option("qos", site.qos);
  script.option("constraint", site.constraint);
  script.option("time", site.time);
  // SLURM signals the ranks of srun directly; others get the signal from the script.
  if (site.signal_seconds > 0) {
    script.option("signal", str(launcher_of(job) == "srun" ? "" : "B:", "USR1@", site.signal_seconds));
  }
  script.line(site.requeue == "never" ? "#SBATCH --no-requeue" : "#SBATCH --requeue");
  if (job.array > 0) script.option("array", str("1-", job.array, "%1"));
  // One job at a time per run directory: jobs of the same name wait for each other. This does not hold between tasks of
  // one array; those are limited by %1.
  script.line("#SBATCH --dependency=singleton");
  for (const std::string& option : site.sbatch_options) script.line("#SBATCH " + option);
}

}  // namespace

std::string shell_quoted(const std::string& text) {
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string sbatch_quoted(const std::string& text, bool pattern) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '%' && pattern ? std::string("%%") : std::string(1, c);
  }
  return out + "\"";
}

std::string job_name(const std::string& run_dir, const std::string& name) {
  std::filesystem::path path(run_dir);
  if (path.filename().empty()) path = path.parent_path();
  std::string text;
  for (char c : (name.empty() ? path.filename().string() : name).substr(0, 40))
    text += plain(c) && std::string("/:=,@+%").find(c) == std::string::npos ? c : '_';
  return text + "-" + sha256_hex(path.string()).substr(0, 10);
}

std::string job_script(const JobSpec& job) {
  const Site& site = job.site;
  require_one_line(job.run_dir);
  require_one_line(job.work_dir);
  Script script;
  script.line("#!/bin/bash");
  script.line(str("# ", job.nodes, job.nodes == 1 ? " node" : " nodes", " of ", job.ranks_per_node,
                  job.ranks_per_node == 1 ? " rank" : " ranks", ". Written by `transmamba ", job.verb,
                  "`; run that again instead of editing this file."));
  write_head(script, job);
  script.line("");
  script.line("program=(" + quoted_words(job.program) + ")");
  script.line("arguments=(" + quoted_words(job.arguments) + ")");
  script.line("run_dir=" + shell_quoted(job.run_dir));
  script.variable("job_file", job.file);
  script.variable("job_name", job.name);
  script.variable("SITE_LAUNCHER", launcher_of(job));
  script.variable("SITE_MPI", site.mpi);
  script.variable("SITE_INTERFACE", site.interface);
  script.variable("SITE_REQUEUE", site.requeue);
  script.variable("SITE_RESTARTS", std::to_string(site.restarts));
  script.variable("SITE_SETUP", site.setup);
  script.line("cd " + shell_quoted(job.work_dir) + " || exit 2");
  script.line("");
  return script.text() + job_body();
}

}  // namespace tmamba
