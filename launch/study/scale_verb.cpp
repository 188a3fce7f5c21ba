// transmamba scale: scaling studies.
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/study/study_compare.h"
#include "launch/study/study_run.h"
#include "launch/verbs.h"

namespace tmamba {

namespace po = boost::program_options;

namespace {

using nlohmann::json;

Study study_of(const Command& command, const std::string& file) {
  Study study = load_study(file);
  if (command.has("dir")) study.dir = command.get<std::string>("dir");
  if (command.has("repeats")) study.repeats = command.get<int64_t>("repeats");
  if (study.repeats < 1) throw UserError("--repeats must be at least 1");
  if (command.has("launcher")) study.launcher = command.get<std::string>("launcher");
  const std::string& l = study.launcher;
  if (l != "mpirun" && l != "srun" && l != "slurm") {
    throw UserError(str("--launcher ", l, ": one of mpirun, srun, slurm"));
  }
  use_site(study, command.has("site") ? command.get<std::string>("site") : "");
  return study;
}

std::optional<int64_t> only_ranks(const Command& command) {
  if (!command.has("only-ranks")) return std::nullopt;
  return command.get<int64_t>("only-ranks");
}

void list(const Study& study, const StudyGrid& grid, bool as_json) {
  json points = json::array();
  for (const StudyPoint& point : grid.points) {
    const bool roof = point.ranks == study.ranks.front();
    points.push_back({{"id", point.id},
                      {"series", point.series},
                      {"done", read_starts(study, point).size()},
                      {"starts", study.repeats},
                      {"command", start_command(study, point, study.starter(), {.roof = roof, .io = study.io})}});
    if (!as_json) {
      std::printf("%s: %zu of %lld starts done\n", point.id.c_str(), points.back()["done"].get<size_t>(),
                  static_cast<long long>(study.repeats));
    }
  }
  json skipped = json::array();
  for (const SkippedPoint& s : grid.skipped) {
    skipped.push_back({{"series", s.series}, {"ranks", s.ranks}, {"seq_len", s.seq_len}, {"why", s.why}});
    if (!as_json) {
      std::printf("left out: %s on %lld ranks, T=%lld: %s\n", s.series.c_str(), static_cast<long long>(s.ranks),
                  static_cast<long long>(s.seq_len), s.why.c_str());
    }
  }
  if (as_json) std::printf("%s\n", json({{"points", points}, {"skipped", skipped}}).dump(2).c_str());
}

// Jobs for what is missing. Returns whether nothing is.
bool submitted(const Study& study, const StudyGrid& grid, const Command& command) {
  const auto jobs = submit_study(study, grid, only_ranks(command), !command.has("dry-run"));
  for (const SubmittedJob& job : jobs) {
    std::fprintf(stderr, "%lld ranks: %s%s\n", static_cast<long long>(job.ranks), job.script.c_str(),
                 job.job.empty() ? "" : (", job " + job.job).c_str());
  }
  return jobs.empty();
}

int scale(const Study& study, const Command& command) {
  const StudyGrid grid = study_grid(study);
  if (command.has("list")) return list(study, grid, command.json()), kDone;
  StudyRun run;
  if (study.launcher == "slurm") {
    if (!submitted(study, grid, command)) {
      if (command.has("dry-run")) return kDone;
      std::fprintf(stderr, "start the same command again when the jobs are through\n");
    }
  } else if (command.has("dry-run")) {
    throw UserError("--dry-run is for --launcher slurm; --list shows what would be started here");
  } else if (!command.has("summary")) {
    run = run_starts(study, grid,
                     {.only_ranks = only_ranks(command), .launcher = study.launcher, .print = !command.json()});
  }
  json summary = study_summary(study, grid, run.failed);
  write_summary(study, summary);
  if (command.has("compare")) summary["compared"] = compare_studies(study, grid, command.get<std::string>("compare"));
  if (command.json()) {
    std::printf("%s\n", summary.dump(2).c_str());
  } else {
    std::printf("%s%s%s/study.json, study.csv, study-model.csv\n", study_text(summary).c_str(),
                summary.contains("compared") ? compare_text(summary["compared"]).c_str() : "", study.dir.c_str());
  }
  if (run.stopped) {
    std::fprintf(stderr, "stopped; start the same command again to go on\n");
    return kSavedAndStopped;
  }
  return run.failed.empty() ? kDone : kFailed;
}

// Each of several ranks would start all of the study's ranks and write the same files.
void refuse_launcher() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  const bool several = tasks != nullptr && std::getenv("SLURM_PROCID") != nullptr && std::atoi(tasks) > 1;
  bool mpirun = false;
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "HYDI_CONTROL_FD"}) {
    mpirun = mpirun || std::getenv(variable) != nullptr;
  }
  if (!several && !mpirun) return;
  throw UserError(str("scale starts the ranks of a study itself: start it once, outside mpirun",
                      several ? " and not as several tasks of srun" : ""));
}

}  // namespace

int scale_verb(const Arguments& arguments) {
  Command command(
      "scale STUDY.toml... [options]",
      "Runs scaling studies: layouts, numbers of ranks and sequence lengths, strong or weak, each several times, by\n"
      "mpirun or srun from here or as SLURM jobs. What is measured is never measured again: a study that was stopped\n"
      "goes on. Writes study.json, study.csv and, apart, what the fitted cost model says of more ranks\n"
      "(study-model.csv); `transmamba report` draws them. Start it outside mpirun. --keys lists a study's keys.");
  command.options()("dir", po::value<std::string>(), "folder of the results in place of study.dir")(
      "repeats", po::value<int64_t>(), "starts of each point, in place of study.repeats")(
      "launcher", po::value<std::string>(), "mpirun, srun or slurm, in place of launch.launcher")(
      "site", po::value<std::string>(), "site file of jobs; default: slurm.site, else the one of TRANSMAMBA_SITE")(
      "only-ranks", po::value<int64_t>(), "run the points of so many ranks alone")(
      "list", "show points and how many of their starts are done, and stop")(
      "summary", "start nothing; summarize what is there")("dry-run",
                                                           "with slurm: write the job scripts, submit nothing")(
      "compare", po::value<std::string>(), "folder of another run of the same study: where do the two differ?")(
      "keys", "list the keys of a study file, with defaults, and stop");
  command.positional("study", -1);
  if (!command.parse(arguments)) return kDone;
  if (command.has("keys")) {
    std::printf("%s", explain_study().c_str());
    return kDone;
  }
  refuse_launcher();
  const std::vector<std::string> files = command.list("study");
  if (files.empty()) throw UserError("a study file is missing\nusage: transmamba scale STUDY.toml  (--help, --keys)");
  if (files.size() > 1 && (command.has("dir") || command.json())) {
    throw UserError("--dir and --json are for one study at a time");
  }
  int code = kDone;
  for (const std::string& file : files) {
    const int of_study = scale(study_of(command, file), command);
    if (of_study == kSavedAndStopped) return of_study;
    code = std::max(code, of_study);
  }
  return code;
}

}  // namespace tmamba
