#include "launch/study/study.h"

#include <toml++/toml.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "data/io/fs.h"
#include "launch/cli/suggest.h"
#include "launch/config/config_text.h"
#include "launch/config/toml_value.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kMostBytes = 1 << 20;  // limit of a study file
using Texts = std::vector<std::string>;
using Integers = std::vector<int64_t>;

constexpr Limits kAny{0, 1e18};

// Calls v(key, member, range or choices, help) for every key.
template <class AnyStudy, class Visitor>
void visit_fields(AnyStudy& s, Visitor&& v) {
  v("study.name", s.name, kAny, "title of the study");
  v("study.mode", s.mode, Choices{"strong", "weak", "weak_sequence"},
    "what is constant as ranks are added: the sequences of a step (strong); the sequences per rank (weak); the tokens "
    "per rank, in longer sequences of seq_len x ranks tokens (weak_sequence)");
  v("study.config", s.config, kAny,
    "configuration of the runs; a path relative to this file or to the working directory");
  v("study.set", s.set, kAny, "keys of the configuration to override: [\"model.dim=512\"]");
  v("study.dir", s.dir, kAny, "directory of the results; empty: runs/studies/NAME OF THIS FILE");
  v("study.ranks", s.ranks, Limits{1, 1 << 20}, "numbers of ranks");
  v("study.seq_len", s.seq_len, Limits{1, 1e9}, "tokens per sequence; empty: the configuration's");
  v("study.layouts", s.layouts, kAny,
    "layouts of the ranks, one curve each: \"dp\", \"sp\", \"tp\" (all ranks on that axis), axes by size or \"rest\" "
    "(\"tp=2, sp=rest, fold=2, transport=gather+sliced\"), \"auto\" (the planner's fastest), \"grid\" (every tp x sp x "
    "dp)");
  v("study.batch", s.batch, Limits{1, 1e9}, "sequences per step (strong, weak_sequence), or per step and rank (weak)");
  v("study.micro_batch", s.micro_batch, Limits{0, 1e9}, "maximum sequences per micro-batch on a rank; 0: no limit");
  v("study.repeats", s.repeats, Limits{1, 10000},
    "measurements of each point, alternating over the points; six give a 95 % interval");
  v("study.steps", s.steps, Limits{1, 1e6}, "timed steps of each repeat; their median is its result");
  v("study.threads", s.threads, Limits{0, 4096}, "CPU threads per rank; 0: all");
  v("study.io", s.io, kAny,
    "also time reading a batch from a token file and writing a checkpoint, in the first three repeats of a point");
  v("study.checkpoint_every", s.checkpoint_every, Limits{1, 1e9},
    "steps between checkpoints, to compute their cost per step");
  v("study.peak_tflops", s.peak_tflops, kAny,
    "peak TFLOP/s of a rank for the MFU; 0: run.peak_tflops of the configuration, else that of its GPU if the model is "
    "known, for cpu the measured GEMM rate of one rank");
  v("study.seed", s.seed, kAny, "seed of the measurement order and of the bootstrap");

  v("launch.launcher", s.launcher, Choices{"mpirun", "srun", "slurm"},
    "how ranks are started: mpirun or srun from this process, or slurm: one batch job per number of ranks");
  v("launch.mpirun", s.mpirun, kAny, "mpirun and its options; -n is appended");
  v("launch.ranks_per_node", s.ranks_per_node, Limits{0, 4096},
    "ranks per node; 0: the site file's; without one, all on one node");
  v("launch.timeout", s.timeout, Limits{1, 1e7}, "seconds after which a repeat counts as failed");

  v("slurm.site", s.site_file, kAny,
    "site file (cluster/site.env), a path relative to this file or to the working directory; empty: the one that "
    "TRANSMAMBA_SITE names");
  v("slurm.time", s.time, kAny, "time limit of a job; empty: SITE_TIME of the site file");

  v("extrapolate.ranks", s.to_ranks, Limits{1, 1 << 20},
    "numbers of ranks to predict with the fitted model; empty: none");
  v("extrapolate.ranks_per_node", s.to_ranks_per_node, Limits{0, 4096},
    "ranks per node of the prediction; 0: as measured");
  v("extrapolate.between_gb_per_s", s.between_gb_per_s, kAny,
    "inter-node bandwidth per rank, used if no measured job spans nodes; 0: the machine model's");
  v("extrapolate.between_latency_us", s.between_latency_us, kAny,
    "inter-node latency, likewise; 0: the machine model's");
}

template <class T>
void read(const Source& s, const toml::node& node, std::vector<T>& out, const Limits& range) {
  const toml::array* array = node.as_array();
  if (array == nullptr)
    s.fail(str("must be a list, for example ", std::is_same_v<T, int64_t> ? "[1, 2, 4]" : "[\"dp\"]"));
  out.clear();
  for (const toml::node& entry : *array) read(s, entry, out.emplace_back(), range);
}

std::string nearest_key(const std::string& key) {
  std::string best;
  size_t least = std::string::npos;
  Study study;
  visit_fields(study, [&](const std::string& name, auto&, const auto&, const char*) {
    if (key_distance(key, name) < least) least = key_distance(key, name), best = name;
  });
  return best;
}

void apply(Study& study, const toml::table& table, const std::string& prefix) {
  for (const auto& entry : table) {
    const toml::key& key = entry.first;
    const toml::node& node = entry.second;  // no structured binding: lambdas could not capture it
    const std::string path = prefix + std::string(key.str());
    const toml::source_position at = key.source().begin;
    const Source source{path, str(study.file, ":", at.line, ":", at.column)};
    if (node.is_table() && prefix.empty()) {
      apply(study, *node.as_table(), path + ".");
      continue;
    }
    bool known = false;
    visit_fields(study, [&](const std::string& name, auto& member, const auto& rule, const char*) {
      if (name == path) read(source, node, member, rule), known = true;
    });
    if (!known) throw UserError(str(source.where, ": unknown key ", path, "; did you mean ", nearest_key(path), "?"));
  }
}

void require(const Study& study, bool condition, const std::string& message) {
  if (!condition) throw UserError(str(study.file, ": ", message));
}

// Sorts ascending and removes duplicates.
void sort_unique(Integers& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

using tmamba::text_of;
template <class T>
std::string text_of(const std::vector<T>& x) {
  std::string text;
  for (const T& value : x) text += (text.empty() ? "" : ", ") + text_of(value);
  return "[" + text + "]";
}

}  // namespace

Study load_study(const fs::path& file) {
  std::error_code error;
  if (!fs::is_regular_file(file, error)) throw UserError(str(file.string(), ": cannot read this study file"));
  Study study;
  study.file = file.string();
  study.text = read_text(file, kMostBytes);
  check_config_text(study.text, study.file);
  try {
    apply(study, toml::parse(study.text, study.file), "");
  } catch (const toml::parse_error& wrong) {
    const toml::source_position at = wrong.source().begin;
    throw UserError(str(study.file, ":", at.line, ":", at.column, ": ", wrong.description()));
  }
  require(study, !study.config.empty(), "study.config must be given: the path of the runs' configuration");
  require(study, !study.ranks.empty(), "study.ranks must be given, for example [1, 2, 4, 8]");
  require(study, !study.layouts.empty(), "study.layouts must not be empty, for example [\"dp\"]");
  require(study, !study.mpirun.empty(), "launch.mpirun must not be empty, for example [\"mpirun\"]");
  if (study.name.empty()) study.name = file.stem().string();
  if (study.dir.empty()) study.dir = (fs::path("runs/studies") / file.stem()).string();
  for (std::string* name : {&study.config, &study.site_file}) {
    const fs::path beside = file.parent_path() / *name;
    if (!name->empty() && fs::exists(beside, error)) *name = beside.string();
  }
  for (Integers* list : {&study.ranks, &study.seq_len, &study.to_ranks}) sort_unique(*list);
  return study;
}

void use_site(Study& study, const std::string& named) {
  if (named.empty() && study.launcher == "mpirun") return;
  study.site_file = site_file(named.empty() ? study.site_file : named);
  study.site = site_of(study.site_file);
  if (study.ranks_per_node == 0 && !study.site_file.empty()) study.ranks_per_node = study.site.default_ranks();
}

std::string explain_study(bool as_json) {
  std::vector<KeyValue> keys;
  Study study;
  visit_fields(study, [&](const std::string& name, const auto& member, const auto& rule, const char* meaning) {
    keys.push_back({name, text_of(member), meaning, {}, valid_text(member, rule)});
  });
  return explained(keys, as_json);
}

}  // namespace tmamba
