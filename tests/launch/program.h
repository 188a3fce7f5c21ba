// Running the program as a user does, in a folder of its own.
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

// All bytes of a file; empty where there is none.
std::string read_file(const std::filesystem::path& file);

// A fresh, empty folder, the current one from then on; one per call.
std::filesystem::path enter_test_folder(const std::string& name);

// Writes `bytes` of text made of words with some structure, the same every time.
void write_text(const std::filesystem::path& path, int64_t bytes, int seed = 1);
// text.txt, and data/train.h5 and data/valid.h5 of it by the byte tokenizer.
void prepare_bytes(int64_t text_bytes = 200000);
// A tiny model on that data: run.toml, writing to `run`. Lines of `more` are appended ("[train]\nsteps = 3").
void write_config(const std::string& file, const std::string& train_section, const std::string& model_extra = "");

std::vector<nlohmann::json> metrics(const std::filesystem::path& run);
// The values of `key` of all step lines, in order.
std::vector<double> series(const std::filesystem::path& run, const std::string& key);

}  // namespace tmamba
