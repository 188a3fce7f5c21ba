// The configuration of a run: plain structs, filled from a TOML file and `--set section.key=value`. The keys are
// declared in config_keys.cpp: name, limits, what a change of it means when a run resumes, and help text.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dist/planner/options.h"
#include "kernels/base/dtype.h"
#include "kernels/base/tensor.h"
#include "launch/config/amount.h"
#include "model/config.h"
#include "model/optimizer_options.h"

namespace tmamba {

// What a change of a key means to a run that resumes from its checkpoints.
enum class Resume : uint8_t {
  fixed,            // refused: the weights are those of another model
  changes_numbers,  // losses and weights differ from here on by more than rounding; the change is logged
  free,
};

// A key with the text of its value, as to_toml() prints it.
struct KeyValue {
  std::string name, text;
  const char* meaning;
  Resume resume;
  std::string valid;  // "between 0 and 10"; "cpu, cuda"; empty: every value of its type
};

struct ValidationSet {
  std::string name, path;
};

// What a run does that finds other contents in a token file than its checkpoint was trained or evaluated on.
enum class Changed : uint8_t { refuse, accept };
constexpr const char* name_of(Changed changed) { return changed == Changed::refuse ? "refuse" : "accept"; }

struct DataConfig {
  std::string train, valid;
  std::vector<ValidationSet> validation;  // [[data.validation]]; validation_sets() includes `valid`
  std::string tokenizer;
  int64_t seq_len = 1024;
  int64_t seed = 1234;
  Changed changed = Changed::refuse;
};

struct TrainConfig : ActivationOptions {
  int64_t steps = 0;
  int64_t tokens = 0;
  double minutes = 0;
  int64_t global_batch = 8;
  int64_t micro_batch = 0;
  double lr = 2.5e-4, min_lr = 2.5e-5;
  Amount warmup{100, AmountUnit::steps}, decay{100, AmountUnit::percent};
  double clip = 1.0;
  OptimizerOptions optimizer;
  DType dtype = DType::f32;
  int64_t seed = 42;
  int64_t eval_every = 0;
  int64_t eval_sequences = 0;
  int64_t sample_every = 0;
  int64_t sample_tokens = 128;
  std::string sample_prompt = "The ";
  double temperature = 0.8;
  int64_t max_skips = 3;
  int64_t spike_window = 0;
  double spike_sigmas = 6;
  int64_t replica_check_every = 0;
};

struct ParallelConfig : ParallelOptions {
  int64_t tp = 1, sp = 1, dp = 0;
  int64_t fold = 1;
  std::string transport = "auto";
};

// Steps between checkpoints: a number, or "auto".
struct SaveEvery {
  int64_t steps = 0;
  bool automatic = false;
};

// Who writes a checkpoint's files: every rank, or one rank of each node.
enum class Writers : uint8_t { rank, node };
constexpr const char* name_of(Writers writers) { return writers == Writers::rank ? "rank" : "node"; }

struct CheckpointConfig {
  SaveEvery every;
  int64_t keep = 3;
  int64_t keep_every = 0;
  bool async = true;
  Writers writers = Writers::rank;
  double mtbf_hours = 24;
};

// What run.profile measures.
enum class Profile : uint8_t { none, comm, ops };
constexpr const char* name_of(Profile profile) {
  return profile == Profile::none ? "none" : profile == Profile::comm ? "comm" : "ops";
}

struct RunSection {
  std::string dir;
  Device device = Device::cpu;
  int64_t log_every = 1;
  int64_t threads = 0;
  double hang_timeout = 600;
  double memory_limit = 0;
  std::string plan;
  Profile profile = Profile::none;
  bool tensorboard = true;
  std::string prometheus;
  bool measure_kernels = true;
  bool graph = true;
  int64_t canonical = 0;
  double peak_tflops = 0;
};

struct RunConfig {
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  RunSection run;
  // Where each key's value comes from: "FILE:LINE", "--set", or "default".
  std::map<std::string, std::string> origin;

  DType dtype() const { return train.dtype; }
  // Consecutive segments that a sequence rank gets at a time (LayoutSpec). In canonical mode the sequence has
  // run.canonical segments in all.
  int grain() const {
    const int64_t segments = parallel.sp * parallel.fold;
    return run.canonical == 0 || segments == 0 ? 1 : static_cast<int>(run.canonical / segments);
  }
};

// Reads a TOML file and applies the overrides ("train.lr=3e-4"; a value that is not TOML is taken as a string).
// Throws UserError naming file, line, key and, for an unknown key, the nearest valid one.
RunConfig load_config(const std::filesystem::path& file, const std::vector<std::string>& overrides);
// The same from the text of a file, as stored in a checkpoint; `name` stands for the file in messages.
RunConfig parse_config(const std::string& text, const std::string& name, const std::vector<std::string>& overrides);

// The effective configuration as a TOML file, each value with its origin as a comment.
std::string to_toml(const RunConfig& config);
// The same as a JSON object of keys and values, without the origins.
std::string to_json(const RunConfig& config);

// Every key's value, those of [[lists.of.tables]] included, in the order of declaration.
std::vector<KeyValue> config_values(const RunConfig& config);

// data.valid, as the set named "valid", and [[data.validation]]. Throws UserError where a path is missing or the name
// "valid" is taken twice.
std::vector<ValidationSet> validation_sets(const DataConfig& data);

// One line per key: name, default, what it means, which values are valid; or a JSON list of objects. With a key, that
// one alone; throws UserError for an unknown key.
std::string explain_keys(const std::string& key = "", bool as_json = false);
std::string explained(const std::vector<KeyValue>& keys, bool as_json);

// Checks that need several keys at once. Throws UserError.
void validate(const RunConfig& config);
// The check that every use of a device needs: run.device computes in train.dtype.
void validate_dtype(const RunConfig& config);

}  // namespace tmamba
