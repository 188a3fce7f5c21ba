#include "tests/launch/program.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "kernels/base/rng.h"

namespace tmamba {

namespace fs = std::filesystem;

Outcome shell(const std::string& command) {
  Outcome outcome;
  FILE* pipe = popen(("{ " + command + "; } 2>&1").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("popen failed");
  std::array<char, 4096> buffer{};
  while (const size_t n = fread(buffer.data(), 1, buffer.size(), pipe)) outcome.output.append(buffer.data(), n);
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

std::string command_line(const std::string& arguments, int ranks) {
  // Set where the tests run on another machine than they were built on.
  const char *packed = std::getenv("TRANSMAMBA_PROGRAM"), *mpiexec = std::getenv("TRANSMAMBA_MPIEXEC");
  const std::string program = std::string("'") + (packed != nullptr ? packed : TRANSMAMBA) + "' " + arguments;
  if (ranks == 0) return program;
  return std::string(mpiexec != nullptr ? mpiexec : MPIEXEC) + " --oversubscribe --allow-run-as-root -n " +
         std::to_string(ranks) + " " + program;
}

Outcome transmamba(const std::string& arguments, int ranks) { return shell(command_line(arguments, ranks)); }

Outcome beside(const std::string& arguments, int ranks, const std::string& script, int64_t hold_at) {
  static constexpr const char* kFunctions =
      "events() { n=$(grep -c \"\\\"event\\\":\\\"$1\\\"\" $run/events.jsonl 2>/dev/null); echo ${n:-0}; }; "
      "steps() { n=$(grep -c '\"loss\":' $run/metrics.jsonl 2>/dev/null); echo ${n:-0}; }; "
      "rank() { for p in $(pgrep -P $job); do grep -qz \"^OMPI_COMM_WORLD_RANK=$1$\" /proc/$p/environ && echo $p; "
      "done; }; "
      "until_() { for i in $(seq 30000); do eval \"$1\" && return; "
      "kill -0 $job 2>/dev/null || { eval \"$1\" && return; break; }; sleep 0.01; done; "
      "echo \"gave up: $1\"; kill -KILL $job 2>/dev/null; }; "
      "hold() { rm -f faults/held; echo $1 >faults/hold.new; mv faults/hold.new faults/hold; }; "
      "held() { until_ '[ -s faults/held ] && grep -q \"^State:.T\" /proc/$(cat faults/held)/status'; "
      "held=$(cat faults/held); }; ";
  return shell(kFunctions + std::string("run=run; rm -rf faults; mkdir faults; ") +
               (hold_at > 0 ? "hold " + std::to_string(hold_at) + "; " : "") +
               ": >faults/begun; FAULTS=\"$PWD/faults\" LD_PRELOAD='" TMAMBA_FAULTS "' " +
               command_line(arguments, ranks) + " & job=$!; " + script + "; wait $job");
}

std::string read_file(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

fs::path enter_test_folder(const std::string& name) {
  const fs::path folder = fs::temp_directory_path() / ("tmamba-" + name + "-" + std::to_string(getpid()));
  fs::remove_all(folder);
  fs::create_directories(folder);
  fs::current_path(folder);
  return folder;
}

void leave_test_folder() {
  const fs::path folder = fs::current_path();
  fs::current_path("/");
  fs::remove_all(folder);
}

void write_text(const fs::path& path, int64_t bytes, int seed) {
  std::ofstream out(path);
  const Philox random(static_cast<uint64_t>(seed), 1);
  static constexpr std::array<const char*, 12> kWords{"state", "scan",   "token",  "layer", "head",  "mamba",
                                                      "point", "prefix", "suffix", "key",   "value", "rank"};
  int64_t written = 0;
  for (uint64_t i = 0; written < bytes; ++i) {
    const uint32_t draw = random.words(i)[0];
    const std::string word = std::string(kWords[draw % kWords.size()]) + (draw / 16 % 9 == 0 ? ".\n" : " ");
    out << word;
    written += static_cast<int64_t>(word.size());
  }
}

void prepare_bytes(int64_t text_bytes) {
  write_text("text.txt", text_bytes);
  const Outcome outcome = transmamba("prepare text.txt --output data --held-out 0.1");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
}

void write_config(const std::string& file, const std::string& train_section, const std::string& model_extra) {
  std::ofstream(file)
      << "[model]\ndim = 32\nheads = 2\nlayers = 4\nffn = 48\nchunk = 16\nschedule = [0, \"1/4\", \"1/2\", \"1/1\"]\n"
      << model_extra << "\n[data]\ntrain = \"data/train.h5\"\nvalid = \"data/valid.h5\"\nseq_len = 64\n"
      << "[train]\nwarmup = 5\nlr = 3e-3\n"
      << train_section << "\n[run]\ndir = \"run\"\nthreads = 1\n";
}

std::vector<nlohmann::json> events(const std::string& kind) {
  std::ifstream in("run/events.jsonl");
  std::vector<nlohmann::json> found;
  for (std::string line; std::getline(in, line);) {
    found.push_back(nlohmann::json::parse(line));
    if (found.back()["event"] != kind) found.pop_back();
  }
  return found;
}

std::vector<nlohmann::json> metrics(const fs::path& run) {
  std::ifstream in(run / "metrics.jsonl");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

std::vector<double> series(const fs::path& run, const std::string& key) {
  std::vector<double> values;
  for (const nlohmann::json& line : metrics(run)) {
    if (line.contains(key)) values.push_back(line[key].is_number() ? line[key].get<double>() : std::nan(""));
  }
  return values;
}

}  // namespace tmamba
