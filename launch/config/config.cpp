#include "launch/config/config.h"

#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/base/check.h"
#include "launch/config/config_text.h"
#include "launch/config/key_table.h"
#include "model/schedule.h"

namespace tmamba {

RunConfig parse_config(const std::string& text, const std::string& name, const std::vector<std::string>& overrides) {
  RunConfig config;
  const KeyTable keys = keys_of(config);
  keys.set_origins_to_default(config.origin);
  keys.read_text(text, name, config.origin);
  for (const std::string& assignment : overrides) keys.override_by(assignment, config.origin);
  validation_sets(config.data);
  // Where the run's length is given in steps, both texts mean the same.
  for (Amount* amount : {&config.train.warmup, &config.train.decay}) {
    if (config.train.steps > 0 && amount->unit == AmountUnit::steps) amount->unit = AmountUnit::of_run;
  }
  return config;
}

RunConfig load_config(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  return parse_config(read_config_text(file), file.string(), overrides);
}

std::string to_toml(const RunConfig& config) {
  RunConfig copy = config;
  return keys_of(copy).to_toml(config.origin);
}

std::string to_json(const RunConfig& config) {
  nlohmann::ordered_json values;
  for (const KeyValue& key : config_values(config)) {
    // Numbers, lists, true and false are written alike in TOML and in JSON; infinity is a text.
    values[key.name] = nlohmann::ordered_json::accept(key.text) ? nlohmann::ordered_json::parse(key.text)
                                                                : nlohmann::ordered_json(key.text);
  }
  return values.dump(2) + "\n";
}

std::vector<KeyValue> config_values(const RunConfig& config) {
  RunConfig copy = config;
  return keys_of(copy).values();
}

std::string explain_keys(const std::string& key, bool as_json) {
  RunConfig defaults;
  return explained(keys_of(defaults).explain(key), as_json);
}

std::string explained(const std::vector<KeyValue>& keys, bool as_json) {
  std::ostringstream out;
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const KeyValue& key : keys) {
    list.push_back({{"key", key.name}, {"default", key.text}, {"meaning", key.meaning}, {"valid", key.valid}});
    out << std::left << std::setw(30) << key.name << " " << std::setw(14) << key.text << " "
        << with_valid(key.meaning, key.valid) << "\n";
  }
  return as_json ? list.dump(2) + "\n" : out.str();
}

std::vector<ValidationSet> validation_sets(const DataConfig& data) {
  std::vector<ValidationSet> sets;
  if (!data.valid.empty()) sets.push_back({.name = "valid", .path = data.valid});
  for (const ValidationSet& set : data.validation) {
    if (set.path.empty()) throw UserError(str("data.validation.", set.name, ".path must be given: a token file"));
    if (!sets.empty() && set.name == "valid" && !data.valid.empty()) {
      throw UserError("data.valid is the validation set \"valid\", which [[data.validation]] also has; remove one");
    }
    sets.push_back(set);
  }
  return sets;
}

void validate_dtype(const RunConfig& c) {
  if (c.run.device != Device::cpu || c.train.dtype != DType::bf16) return;
  throw UserError("train.dtype = \"bfloat16\" needs run.device = \"cuda\"; on the CPU set train.dtype = \"float32\"");
}

namespace {

// Canonical mode: unsupported settings, and units that consist of whole chunks, equally many for every rank and fold.
void validate_canonical(const RunConfig& c) {
  const int64_t units = c.run.canonical, segments = c.parallel.sp * c.parallel.fold, T = c.data.seq_len;
  if (units == 0) return;
  const std::string key = str("run.canonical = ", units);
  if (c.run.device != Device::cpu || c.train.dtype != DType::f64) {
    throw UserError(str(key, " needs run.device = \"cpu\" and train.dtype = \"float64\", not \"", name_of(c.run.device),
                        "\" and \"", name_of(c.train.dtype), "\""));
  }
  if (c.parallel.tp != 1) {
    throw UserError(str(key, " needs parallel.tp = 1, not ", c.parallel.tp,
                        ": sums over tensor-parallel ranks depend on their number"));
  }
  if (c.parallel.fold == 0) throw UserError(str(key, " needs a fixed parallel.fold, not 0 (the planner's choice)"));
  if (c.parallel.transport == "head_parallel") {
    throw UserError(
        str(key, " splits sequences, which parallel.transport = \"head_parallel\" does not: set another transport"));
  }
  if (units % segments != 0) {
    throw UserError(str(key, " must be a multiple of parallel.sp * parallel.fold = ", c.parallel.sp, " * ",
                        c.parallel.fold, ", and the same in all runs to be compared; for example ",
                        round_up(units, segments)));
  }
  if (T % (units * c.model.chunk) != 0) {
    throw UserError(
        str(key, " does not split data.seq_len = ", T, " into units of whole chunks of model.chunk = ", c.model.chunk,
            " tokens: set run.canonical to a divisor of ", T % c.model.chunk == 0 ? str(T / c.model.chunk) : str(T),
            T % c.model.chunk == 0 ? "" : " and model.chunk to a divisor of a unit's tokens"));
  }
}

}  // namespace

void validate(const RunConfig& c) {
  validate(c.model);
  validate_dtype(c);
  auto require = [](bool condition, const std::string& message) {
    if (!condition) throw UserError(message);
  };
  transpoints(c.model.schedule, c.model.layers, c.data.seq_len);
  require(c.train.steps > 0 || c.train.tokens > 0, "train.steps or train.tokens must be given: how long to train");
  require(c.train.steps == 0 || c.train.tokens == 0, "train.steps and train.tokens exclude each other: remove one");
  require(!c.run.dir.empty(), "run.dir must be given: the run directory");
  require(!c.data.train.empty(), "data.train must be given: a token file written by `transmamba prepare`");
  const bool collected = c.run.prometheus.empty() || std::filesystem::path(c.run.prometheus).extension() == ".prom";
  require(collected, str("run.prometheus = ", c.run.prometheus,
                         " must end in .prom: node_exporter's textfile collector reads no other files"));
  validate_canonical(c);
}

}  // namespace tmamba
