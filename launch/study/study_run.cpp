#include "launch/study/study_run.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <set>

#include "data/io/fs.h"
#include "kernels/base/clock.h"
#include "kernels/base/rng.h"
#include "launch/bench/bench_io.h"
#include "launch/cli/child_process.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/cli/signals.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kMostOutput = 1 << 20;

// Held while this process works in the study's directory.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& file) : fd_(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    if (fd_ < 0) throw FileError("open", file, errno);
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
    ::close(fd_);
    throw UserError(str("another `transmamba scale` is running on this study (", file.string(),
                        " is locked); wait for it, or set another study.dir (--dir)"));
  }
  ~FolderLock() { ::close(fd_); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

double load_average() {
  double load = 0;
  return ::getloadavg(&load, 1) == 1 ? load : 0;
}

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

struct Repeat {
  const StudyPoint* point;
  int64_t number;
  bool retry = false;
};

// Alternates over the points, so that a slow hour affects all of them; each repeat visits them in a new random order.
std::vector<Repeat> missing_repeats(const Study& study, const StudyGrid& grid, const StudyRunOptions& options) {
  std::vector<std::pair<const StudyPoint*, std::map<int64_t, json>>> points;
  for (const StudyPoint& point : grid.points) {
    if (!options.only_ranks || *options.only_ranks == point.ranks)
      points.emplace_back(&point, read_repeats(study, point));
  }
  std::vector<Repeat> missing;
  for (int64_t number = 0; number < study.repeats; ++number) {
    const size_t begin = missing.size();
    for (const auto& [point, done] : points) {
      if (!done.contains(number)) missing.push_back({point, number});
    }
    const Philox random(static_cast<uint64_t>(study.seed), static_cast<uint64_t>(number));
    for (size_t i = missing.size(); i > begin + 1; --i) {
      std::swap(missing[i - 1], missing[begin + random.words(i)[0] % (i - begin)]);
    }
  }
  return missing;
}

// One line about the failure of a repeat: the program's error without the launcher's lines after it, or the end of the
// output.
std::string error_summary(const std::string& text) {
  constexpr size_t kMost = 400;
  const size_t error = ("\n" + text).find("\nerror: ");
  std::string summary = error != std::string::npos ? text.substr(error, text.find("\n---", error) - error) : text;
  if (summary.size() > kMost) summary = "... " + summary.substr(summary.size() - kMost);
  std::replace(summary.begin(), summary.end(), '\n', ' ');
  while (!summary.empty() && summary.back() == ' ') summary.pop_back();
  return summary;
}

// The JSON object in the output of a repeat; a launcher may print lines before and after it.
json result_in(const std::string& output) {
  const size_t begin = output.find('{'), end = output.rfind('}');
  if (begin == std::string::npos || end == std::string::npos) return nullptr;
  return json::parse(output.substr(begin, end - begin + 1), nullptr, /*allow_exceptions=*/false);
}

struct RepeatEnd {
  std::string problem;  // empty on success
  bool stopped = false;
  bool refused = false;  // exit code 2: no other repeat of the point can succeed
  double step_ms = 0;
};

RepeatEnd run_repeat(const Study& study, const Repeat& repeat, const StudyRunOptions& options,
                     const RepeatParts& parts) {
  const fs::path folder = point_folder(study, *repeat.point), file = repeat_file(study, *repeat.point, repeat.number);
  const fs::path output = fs::path(file).replace_extension(".out"), errors = fs::path(file).replace_extension(".err");
  replace_text_durably(folder / "config.toml", to_toml(repeat.point->config), random_nonce());
  const std::vector<std::string> command = repeat_command(study, *repeat.point, options.launcher, parts);
  const double load = load_average();
  const std::string when = now_text();
  const auto begin = Clock::now();
  ChildSpec child{.command = command, .output = output, .errors = errors, .timeout = study.timeout};
  if (study.threads > 0) {
    child.environment = {{"OMP_NUM_THREADS", str(study.threads)}, {"OPENBLAS_NUM_THREADS", str(study.threads)}};
  }
  const ChildEnd end = run_child(child);
  std::error_code ignored;
  if (end.exit_code != 0) fs::remove_all(bench_io_folder(folder), ignored);  // as large as a checkpoint
  if (end.stopped) return {.problem = "stopped", .stopped = true};
  const std::string printed = read_text(output, kMostOutput);
  const json result = end.exit_code == 0 ? result_in(printed) : json();
  if (!result.is_object() || !result.contains("step_ms")) {
    return {.problem =
                str(end.timed_out        ? str("took longer than launch.timeout = ", study.timeout, " s")
                    : end.exit_code != 0 ? str("exit code ", end.exit_code)
                                         : std::string("printed no result"),
                    ": ", error_summary(printed + "\n" + read_text(errors, kMostOutput)), " (", errors.string(), ")"),
            .refused = end.exit_code == kBadInput};
  }
  const json content = {{"id", repeat.point->id},
                        {"start", repeat.number},
                        {"fingerprint", fingerprint(study, *repeat.point)},
                        {"time", when},
                        {"seconds", seconds_since(begin)},
                        {"load", load},
                        {"command", shell_line(command)},
                        {"result", result}};
  replace_text_durably(file, content.dump(2) + "\n", random_nonce());
  fs::remove(output, ignored), fs::remove(errors, ignored);
  return {.problem = "", .step_ms = result.at("step_ms").get<double>()};
}

}  // namespace

std::vector<std::string> repeat_command(const Study& study, const StudyPoint& point, const std::string& launcher,
                                        const RepeatParts& parts) {
  const bool slurm = launcher == "srun";
  std::vector<std::string> command = slurm ? srun_words(study.site) : study.mpirun;
  const int64_t on_node = study.ranks_per_node;
  if (on_node > 0 && slurm) {
    for (const std::string& word :
         {str("--nodes=", ceil_div(point.ranks, on_node)), str("--ntasks-per-node=", std::min(point.ranks, on_node))}) {
      command.push_back(word);
    }
  } else if (on_node > 0) {
    command.insert(command.end(), {"--map-by", str("ppr:", std::min(point.ranks, on_node), ":node")});
  }
  const fs::path folder = point_folder(study, point);
  command.insert(command.end(), {"-n", str(point.ranks)});
  for (const std::string& word : rank_program(study.site)) command.push_back(word);
  command.insert(command.end(),
                 {"bench", "step", (folder / "config.toml").string(), "--json", "--steps", str(study.steps),
                  "--threads", str(study.threads), "--micro-batches", str(point.plan.dims.micro_batches())});
  if (!parts.roof) command.emplace_back("--no-roof");
  if (parts.io) command.insert(command.end(), {"--io", folder.string()});
  return command;
}

StudyRun run_repeats(const Study& study, const StudyGrid& grid, const StudyRunOptions& options) {
  make_folders(fs::path(study.dir) / "points");
  const std::string which = options.only_ranks ? str("-n", *options.only_ranks) : "";
  const FolderLock lock(fs::path(study.dir) / str("lock", which));
  install_signal_handlers();
  std::vector<Repeat> repeats = missing_repeats(study, grid, options);
  const int64_t fewest = study.ranks.front();
  StudyRun run;
  std::set<const StudyPoint*> refused;
  const auto begin = Clock::now();
  for (size_t i = 0; i < repeats.size() && !run.stopped; ++i) {
    const Repeat repeat = repeats[i];
    if (refused.contains(repeat.point)) continue;
    make_folders(point_folder(study, *repeat.point));
    // The GEMM rate and checkpoints take longer than steps: they are measured only in the smallest runs, a few times.
    const RepeatEnd end =
        run_repeat(study, repeat, options,
                   {.roof = repeat.point->ranks == fewest && repeat.number == 0, .io = study.io && repeat.number < 3});
    if (end.refused) refused.insert(repeat.point);
    run.stopped = end.stopped || pending_signal() != 0;
    const bool failed = !end.problem.empty() && !end.stopped;
    // Failures of the launcher are often transient: retry once, after all other repeats.
    if (failed && !end.refused && !repeat.retry) {
      repeats.push_back({repeat.point, repeat.number, /*retry=*/true});
    } else if (failed) {
      run.failed.push_back({repeat.point->id, repeat.number, end.problem});
    }
    if (!options.print) continue;
    const double each = seconds_since(begin) / static_cast<double>(i + 1);
    message_line(str("[", i + 1, "/", repeats.size(), "] ", repeat.point->id, " repeat ", repeat.number, ": ",
                     end.problem.empty() ? fixed(end.step_ms, 1) + " ms per step" : end.problem, ", ",
                     duration(each * static_cast<double>(repeats.size() - i - 1)), " left"));
  }
  return run;
}

}  // namespace tmamba
