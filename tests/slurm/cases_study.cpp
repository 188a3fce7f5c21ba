// A scaling study as jobs: `transmamba scale` hands them in, and started again it collects what they measured.
#include <fstream>
#include <sstream>

#include "tests/slurm/case.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

constexpr int kRepeats = 3;

void write_study(Case& c, const std::string& site) {
  std::ofstream(c.folder() / "study.toml")
      << "[study]\nconfig = \"run.toml\"\nset = [\"model.vocab=64\"]\ndir = \"out\"\nranks = [1, 2, 4]\nbatch = 4\n"
      << "steps = 1\nrepeats = " << kRepeats << "\n[launch]\nlauncher = \"slurm\"\n[slurm]\nsite = \"site.env\"\n";
  std::ofstream(c.folder() / "site.env") << "SITE_CONSTRAINT=common\nSITE_RANKS_PER_NODE=1\n" << site;
}

Outcome scale(Case& c, const std::string& options = "") {
  return c.cluster().run(c.folder(), command_line("scale study.toml " + options, 0));
}

// Numbers of the jobs that scale names, in the order of their ranks.
std::vector<std::string> jobs_in(const std::string& text) {
  std::vector<std::string> jobs;
  for (size_t at = 0; (at = text.find(", job ", at)) != std::string::npos;) {
    at += 6;
    jobs.push_back(text.substr(at, text.find_first_not_of("0123456789", at) - at));
  }
  return jobs;
}

// The cells of a table with a header, by row and column.
std::vector<std::map<std::string, std::string>> table_in(const fs::path& file) {
  const auto cells = [](const std::string& line) {
    std::vector<std::string> found;
    std::istringstream in(line);
    for (std::string cell; std::getline(in, cell, ',');) found.push_back(cell);
    return found;
  };
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  const std::vector<std::string> names = cells(line);
  std::vector<std::map<std::string, std::string>> rows;
  while (std::getline(in, line)) {
    auto& row = rows.emplace_back();
    const std::vector<std::string> values = cells(line);
    for (size_t i = 0; i < std::min(names.size(), values.size()); ++i) row[names[i]] = values[i];
  }
  return rows;
}

// Whether a point with this in its name has its first result.
bool has_result(const fs::path& points, const std::string& name) {
  std::error_code ignored;
  for (const auto& point : fs::directory_iterator(points, ignored)) {
    if (point.path().string().find(name) != std::string::npos && fs::exists(point.path() / "start-00.json"))
      return true;
  }
  return false;
}

// Every number of ranks has its job; one that was cancelled gets another, the rest are not submitted twice. One that is
// requeued while it measures resumes.
void study(Case& c) {
  write_study(c, "SITE_TIME=10\nSITE_SBATCH_OPTIONS=--hold\n");
  const Outcome first = scale(c);
  c.equal(first.code, 0, "exit code: " + first.output);
  const std::vector<std::string> jobs = jobs_in(first.output);
  if (jobs.size() != 3) return c.expect(false, "three jobs are expected: " + first.output);
  c.slurm("scancel " + jobs[1]);
  c.ends(jobs[1], "CANCELLED");
  const Outcome second = scale(c);
  c.equal(second.code, 0, "exit code: " + second.output);
  const std::vector<std::string> again = jobs_in(second.output);
  if (again.size() != 3) return c.expect(false, "three jobs are expected: " + second.output);
  for (const size_t i : {0, 2}) {
    c.equal(again[i], jobs[i], "job");
    c.contains(second.output, ", job " + jobs[i] + " (submitted before)");
  }
  c.expect(again[1] != jobs[1], "the cancelled job was not submitted again");
  for (const std::string& job : again) c.slurm("scontrol release " + job);
  const fs::path begun = c.folder() / "out" / "points";
  while (!has_result(begun, "-n0004-")) {
    if (c.cluster().wait(again[2], 0, [](const JobFields& f) { return f.at("JobState") == "FAILED"; })) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  c.slurm("scontrol requeue " + again[2]);
  c.restarted(again[2]);
  for (const std::string& job : again) c.equal(c.ends(job).at("ExitCode"), "0:0", "exit code of job " + job);
  const Outcome third = scale(c);
  c.equal(third.code, 0, "exit code: " + third.output);
  c.expect(jobs_in(third.output).empty(), "submitted though all is measured: " + third.output);
  c.contains(third.output, "3 of 3 points measured");
  const auto rows = table_in(c.folder() / "out" / "study.csv");
  c.equal(rows.size(), 3u, "rows of study.csv");
  for (size_t i = 0; i < rows.size(); ++i) {
    c.equal(rows[i].at("ranks"), std::to_string(1 << i), "ranks");
    c.equal(rows[i].at("starts"), std::to_string(kRepeats), "starts");
    c.expect(std::stod(rows[i].at("step_ms_median")) > 0, "no median");
  }
}

void unknown_partition(Case& c) {
  write_study(c, "SITE_PARTITION=gpu-large\n");
  const Outcome outcome = scale(c);
  c.equal(outcome.code, 2, "exit code");
  c.contains(outcome.output, "unknown partition gpu-large (SITE_PARTITION); valid: high low");
  c.expect(!fs::exists(c.folder() / "out"), "a refused study leaves a folder");
}

}  // namespace

std::vector<CaseEntry> study_cases() { return {{"Study", study}, {"StudyInAnUnknownPartition", unknown_partition}}; }

}  // namespace tmamba
