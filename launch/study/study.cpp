#include "launch/study/study.h"

#include <toml++/toml.h>

#include <algorithm>
#include <functional>
#include <iomanip>
#include <limits>
#include <sstream>

#include "data/io/fs.h"
#include "launch/cli/suggest.h"
#include "launch/config/config_text.h"
#include "launch/config/toml_value.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kMostBytes = 1 << 20;  // of a study's file
using Texts = std::vector<std::string>;
using Integers = std::vector<int64_t>;

constexpr Limits kAny{0, 1e18};

// Calls v(key, member, range or choices, what it means) for every key.
template <class AnyStudy, class Visitor>
void visit_fields(AnyStudy& s, Visitor&& v) {
  v("study.name", s.name, kAny, "title of the study");
  v("study.mode", s.mode, Choices{"strong", "weak", "weak_sequence"},
    "what stays the same as ranks are added: a step's sequences (strong); the sequences per rank (weak); the tokens "
    "per "
    "rank in ever longer sequences (weak_sequence: seq_len x ranks tokens each)");
  v("study.config", s.config, kAny, "configuration of the runs, beside this file or from the working folder");
  v("study.set", s.set, kAny, "keys of it to override: [\"model.dim=512\"]");
  v("study.dir", s.dir, kAny, "folder of the results; empty: runs/studies/NAME OF THIS FILE");
  v("study.ranks", s.ranks, Limits{1, 1 << 20}, "numbers of ranks");
  v("study.seq_len", s.seq_len, Limits{1, 1e9}, "tokens per sequence; empty: the configuration's");
  v("study.layouts", s.layouts, kAny,
    "ways to cut the work, a curve each: \"dp\", \"sp\", \"tp\" (all ranks on that axis), axes by number or what is "
    "left (\"tp=2, sp=rest, fold=2, transport=gather+sliced\"), \"auto\" (the planner's fastest), \"grid\" (every tp x "
    "sp x dp)");
  v("study.batch", s.batch, Limits{1, 1e9},
    "sequences of a step (strong, weak_sequence), or of a step per rank (weak)");
  v("study.micro_batch", s.micro_batch, Limits{0, 1e9},
    "most sequences of a forward pass on a rank; 0: all that fall to it");
  v("study.repeats", s.repeats, Limits{1, 10000},
    "starts of each point, one after the other in turn; six give a 95 % interval");
  v("study.steps", s.steps, Limits{1, 1e6}, "timed steps of each start; their median counts");
  v("study.threads", s.threads, Limits{0, 4096}, "CPU threads per rank; 0: all");
  v("study.io", s.io, kAny,
    "also time a batch from a token file and a checkpoint, in the first three starts of a point");
  v("study.checkpoint_every", s.checkpoint_every, Limits{1, 1e9},
    "steps between checkpoints, for their share of a step");
  v("study.peak_tflops", s.peak_tflops, kAny,
    "peak of a rank for the MFU; 0: 989 for cuda (H200, bfloat16), for cpu the matrix product rate of one rank as "
    "measured");
  v("study.seed", s.seed, kAny, "of the order of measurement and of resampling");

  v("launch.launcher", s.launcher, Choices{"mpirun", "srun", "slurm"},
    "how ranks are started: mpirun or srun from here, or slurm: a batch job for each number of ranks");
  v("launch.mpirun", s.mpirun, kAny, "mpirun and its options, before -n");
  v("launch.ranks_per_node", s.ranks_per_node, Limits{0, 4096},
    "ranks on each node; 0: as the site file says, without one all on one");
  v("launch.timeout", s.timeout, Limits{1, 1e7}, "seconds after which a start has failed");

  v("slurm.site", s.site_file, kAny,
    "file of the site (cluster/site.env), beside this file or from the working folder; empty: the one that "
    "TRANSMAMBA_SITE names");
  v("slurm.time", s.time, kAny, "time limit of a job; empty: SITE_TIME of the site file");

  v("extrapolate.ranks", s.to_ranks, Limits{1, 1 << 20},
    "numbers of ranks to predict by the fitted model; empty: none");
  v("extrapolate.ranks_per_node", s.to_ranks_per_node, Limits{0, 4096}, "on such nodes; 0: as measured");
  v("extrapolate.between_gb_per_s", s.between_gb_per_s, kAny,
    "bandwidth of a rank to other nodes, where no measured job spans nodes; 0: as the machine model assumes");
  v("extrapolate.between_latency_us", s.between_latency_us, kAny, "latency of an exchange between nodes; 0: the same");
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
  for (const auto& [key, node] : table) {
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

// Ascending, each once.
void sort_out(Integers& values) {
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
  require(study, !study.config.empty(), "study.config must be given: the configuration of the runs");
  require(study, !study.ranks.empty(), "study.ranks must be given: [1, 2, 4, 8]");
  require(study, !study.layouts.empty(), "study.layouts is empty");
  require(study, !study.mpirun.empty(), "launch.mpirun names a program");
  if (study.name.empty()) study.name = file.stem().string();
  if (study.dir.empty()) study.dir = (fs::path("runs/studies") / file.stem()).string();
  for (std::string* name : {&study.config, &study.site_file}) {
    const fs::path beside = file.parent_path() / *name;
    if (!name->empty() && fs::exists(beside, error)) *name = beside.string();
  }
  for (Integers* list : {&study.ranks, &study.seq_len, &study.to_ranks}) sort_out(*list);
  return study;
}

void use_site(Study& study, const std::string& named) {
  if (named.empty() && study.launcher == "mpirun") return;
  study.site_file = site_file(named.empty() ? study.site_file : named);
  study.site = site_of(study.site_file);
  if (study.ranks_per_node == 0 && !study.site_file.empty()) study.ranks_per_node = study.site.default_ranks();
}

std::string explain_study() {
  std::ostringstream out;
  Study study;
  visit_fields(study, [&](const std::string& name, const auto& member, const auto&, const char* meaning) {
    out << std::left << std::setw(30) << name << " " << std::setw(12) << text_of(member) << " " << meaning << "\n";
  });
  return out.str();
}

}  // namespace tmamba
