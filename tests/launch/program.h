// Runs the program as a user does, in a test folder.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tmamba {

struct Outcome {
  int code = 0;
  std::string output;  // standard output and error together
};

// Runs a shell command in the test's folder.
Outcome shell(const std::string& command);
// transmamba ARGUMENTS, alone or under mpirun with `ranks` ranks.
Outcome transmamba(const std::string& arguments, int ranks = 0);
// The command line that transmamba() runs.
std::string command_line(const std::string& arguments, int ranks);

// Runs `transmamba ARGUMENTS` in the background with a shell script beside it; the outcome is that of the run. With
// `hold_at` rank 0 stops itself after it has logged that step (tests/launch/faults.cpp), so that what the script does
// to the run cannot come too late. In the script:
//   $job             the process started: transmamba, or mpirun where there are ranks
//   rank N           prints the process of rank N under mpirun
//   run=FOLDER       the run directory that `events` and `steps` read; "run" if not set
//   events KIND      prints the number of events of this kind
//   steps            prints the number of logged steps
//   until_ COMMAND   waits until the command succeeds; prints "gave up" where the run has ended or after five minutes
//   hold STEP        sets another step to stop at
//   held             waits until rank 0 has stopped itself; its process is then $held
Outcome beside(const std::string& arguments, int ranks, const std::string& script, int64_t hold_at = 0);

// All bytes of a file; empty where there is none.
std::string read_file(const std::filesystem::path& file);

// Creates an empty folder, enters it and returns its path.
std::filesystem::path enter_test_folder(const std::string& name);
// Removes the current folder, after leaving it.
void leave_test_folder();

// Writes `bytes` of text made of words with some structure; the same text in every call.
void write_text(const std::filesystem::path& path, int64_t bytes, int seed = 1);
// text.txt, and data/train.h5 and data/valid.h5 of it by the byte tokenizer.
void prepare_bytes(int64_t text_bytes = 200000);
// A tiny model on that data: run.toml, writing to `run`. Lines of `more` are appended ("[train]\nsteps = 3").
void write_config(const std::string& file, const std::string& train_section, const std::string& model_extra = "");

// The events of this kind in run/events.jsonl.
std::vector<nlohmann::json> events(const std::string& kind);
std::vector<nlohmann::json> metrics(const std::filesystem::path& run);
// The values of `key` of all step lines, in order.
std::vector<double> series(const std::filesystem::path& run, const std::string& key);

}  // namespace tmamba
