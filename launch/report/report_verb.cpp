// transmamba report: writes the HTML report of runs or of scaling studies.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/io/fs.h"
#include "launch/cli/command.h"
#include "launch/cli/format.h"
#include "launch/report/report.h"
#include "launch/report/report_study.h"
#include "launch/verbs.h"

namespace tmamba {

namespace {

nlohmann::json json_of(const ReportRun& run) {
  const MetricRecords& kept = run.record.kept;
  nlohmann::json out = {{"run", run.record.dir.string()},
                        {"name", run.name},
                        {"steps", kept.steps.empty() ? 0 : kept.steps.back().step},
                        {"goodput", goodput_json(run.goodput)},
                        {"problems", run.record.problems}};
  if (!kept.steps.empty()) out["loss"] = kept.steps.back().loss;
  return out;
}

void write_page(const std::filesystem::path& file, const std::string& page) {
  try {
    replace_text_durably(std::filesystem::absolute(file), page, random_nonce());
  } catch (const FileError& error) {
    throw UserError(str(error.what(), "; name a writable file with --output"));
  }
}

int report_studies(const std::vector<std::string>& dirs, const std::filesystem::path& file, bool as_json) {
  std::vector<nlohmann::json> summaries;
  for (const std::string& dir : dirs) {
    if (!is_study(dir)) throw UserError(str(dir, " is not a study; report studies and runs separately"));
    summaries.push_back(read_study_summary(dir));
  }
  const std::string page = study_page(summaries);
  write_page(file, page);
  if (as_json) {
    std::printf("%s\n",
                nlohmann::json({{"file", file.string()}, {"bytes", page.size()}, {"studies", dirs}}).dump(2).c_str());
  } else {
    std::printf("%s: %s\n", file.c_str(), bytes_text(static_cast<int64_t>(page.size())).c_str());
  }
  return 0;
}

}  // namespace

int report_verb(const Arguments& arguments) {
  Command command("report");
  if (!command.parse(arguments)) return 0;
  const std::vector<std::string> dirs = command.list("run");
  const std::filesystem::path file = command.has("output") ? std::filesystem::path(command.get<std::string>("output"))
                                     : dirs.size() == 1    ? std::filesystem::path(dirs.front()) / "report.html"
                                                           : std::filesystem::path("report.html");
  if (is_study(dirs.front())) return report_studies(dirs, file, command.json());
  const std::vector<ReportRun> runs = read_runs(dirs);
  const std::string page = report_page(runs);
  write_page(file, page);
  for (const ReportRun& run : runs) {
    for (const std::string& problem : run.record.problems) {
      std::fprintf(stderr, "%s/%s\n", run.record.dir.c_str(), problem.c_str());
    }
  }
  if (!command.json()) {
    for (const ReportRun& run : runs) std::printf("%s: %s\n", run.name.c_str(), goodput_text(run.goodput).c_str());
    std::printf("%s: %s\n", file.c_str(), bytes_text(static_cast<int64_t>(page.size())).c_str());
    return 0;
  }
  nlohmann::json out = {{"file", file.string()}, {"bytes", page.size()}, {"runs", nlohmann::json::array()}};
  for (const ReportRun& run : runs) out["runs"].push_back(json_of(run));
  std::printf("%s\n", out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return 0;
}

}  // namespace tmamba
