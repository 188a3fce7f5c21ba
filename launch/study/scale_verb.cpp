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

namespace {

using nlohmann::json;

Study study_of(const Command& command, const std::string& file) {
  Study study = load_study(file);
  if (command.has("dir")) study.dir = command.get<std::string>("dir");
  if (command.has("repeats")) study.repeats = command.get<int64_t>("repeats");
  if (command.has("launcher")) study.launcher = command.get<std::string>("launcher");
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
                      {"done", read_repeats(study, point).size()},
                      {"starts", study.repeats},
                      {"command", repeat_command(study, point, study.starter(), {.roof = roof, .io = study.io})}});
    if (!as_json) {
      std::printf("%s: %zu of %lld repeats done\n", point.id.c_str(), points.back()["done"].get<size_t>(),
                  static_cast<long long>(study.repeats));
    }
  }
  json skipped = json::array();
  for (const SkippedPoint& s : grid.skipped) {
    skipped.push_back({{"series", s.series}, {"ranks", s.ranks}, {"seq_len", s.seq_len}, {"why", s.why}});
    if (!as_json) {
      std::printf("skipped: %s on %lld ranks, T=%lld: %s\n", s.series.c_str(), static_cast<long long>(s.ranks),
                  static_cast<long long>(s.seq_len), s.why.c_str());
    }
  }
  if (as_json) std::printf("%s\n", json({{"points", points}, {"skipped", skipped}}).dump(2).c_str());
}

// Submits jobs for the missing repeats. Returns whether the study is complete.
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
      std::fprintf(stderr, "run the same command again when the jobs have finished: it collects their results\n");
    }
  } else if (command.has("dry-run")) {
    throw UserError("--dry-run is for --launcher slurm; for mpirun and srun, --list shows the commands");
  } else if (!command.has("summary")) {
    run = run_repeats(study, grid,
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
    std::fprintf(stderr, "stopped; run the same command again to resume\n");
    return kSavedAndStopped;
  }
  return run.failed.empty() ? kDone : kFailed;
}

// Throws if started by mpirun or as several tasks of srun: each process would start all ranks and write the same files.
void refuse_launcher() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  const bool several = tasks != nullptr && std::getenv("SLURM_PROCID") != nullptr && std::atoi(tasks) > 1;
  bool mpirun = false;
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "HYDI_CONTROL_FD"}) {
    mpirun = mpirun || std::getenv(variable) != nullptr;
  }
  if (!several && !mpirun) return;
  throw UserError(str("scale starts the ranks of a study itself: run it as one process, outside mpirun",
                      several ? " and not as several tasks of srun" : ""));
}

}  // namespace

int scale_verb(const Arguments& arguments) {
  Command command("scale");
  if (!command.parse(arguments)) return kDone;
  if (command.has("keys")) {
    std::printf("%s", explain_study(command.json()).c_str());
    return kDone;
  }
  refuse_launcher();
  const std::vector<std::string> files = command.list("study");
  if (files.empty()) throw UserError("a study file is missing\nusage: transmamba scale STUDY.toml  (--help, --keys)");
  if (files.size() > 1 && (command.has("dir") || command.json())) {
    throw UserError(str("--dir and --json take one study file, not ", files.size()));
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
