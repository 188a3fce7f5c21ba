#include "launch/config/config.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <iomanip>
#include <limits>
#include <optional>
#include <sstream>

#include "dist/planner/plan.h"
#include "dist/zero/zero_sharding.h"
#include "kernels/base/check.h"
#include "launch/cli/suggest.h"
#include "launch/config/config_text.h"
#include "launch/config/toml_value.h"

namespace tmamba {

namespace {

Choices transport_choices() {
  Choices names{"auto"};
  for (const Transport& transport : all_transports()) names.push_back(name_of(transport));
  return names;
}

Choices recompute_choices() {
  Choices names;
  for (Recompute level : kRecomputeLevels) names.push_back(name_of(level));
  return names;
}

// Calls v(key, member, limits or choices, what it means) for every key, in the order they are printed.
template <class Config, class Visitor>
void visit_fields(Config& c, Visitor&& v) {
  v("model.vocab", c.model.vocab, Limits{0, 2147483648.0},
    "rows of the embedding; 0: as many as the tokenizer has tokens");
  v("model.dim", c.model.dim, Limits{1, 1 << 20}, "width d of the residual stream");
  v("model.heads", c.model.heads, Limits{1, 1 << 16}, "heads; dim / heads is the head width and the state width");
  v("model.layers", c.model.layers, Limits{1, 1 << 16}, "pairs of mixer and MLP");
  v("model.ffn", c.model.ffn, Limits{1, 1 << 22}, "width of the SwiGLU MLP");
  v("model.schedule", c.model.schedule, Limits{},
    "TransPoints, cycled over the layers: tokens (512) or fractions (\"1/4\") of the sequence");
  v("model.conv", c.model.conv, Limits{2, 8}, "taps of the causal convolution");
  v("model.chunk", c.model.chunk, Limits{1, 1024}, "tokens per chunk of the SSM scan");
  v("model.tied_head", c.model.tied_head, Limits{}, "use the embedding's weight as the head's");
  v("model.z_gate", c.model.z_gate, Limits{}, "gate the SSM outputs by SiLU(z)");
  v("model.converter", c.model.converter, Choices{"exact", "zero"},
    "state at the TransPoint: the Memory Converter's, or zero");
  v("model.norm_eps", c.model.norm_eps, Limits{0, 1}, "epsilon of every RMSNorm");
  v("model.rope_theta", c.model.rope_theta, Limits{1, 1e12}, "base of the rotary angles");
  v("model.init_std", c.model.init_std, Limits{0, 10}, "standard deviation of initial weights");

  v("data.train", c.data.train, Limits{}, "token file to train on, from `transmamba prepare`");
  v("data.valid", c.data.valid, Limits{}, "token file held out for evaluation");
  v("data.tokenizer", c.data.tokenizer, Limits{},
    "\"bytes\" or a tokenizer file; empty: the one beside the token file");
  v("data.seq_len", c.data.seq_len, Limits{1, 1e9}, "tokens per sequence T");
  v("data.seed", c.data.seed, Limits{}, "seed of the order of the data");

  v("train.steps", c.train.steps, Limits{}, "optimizer steps to train for; the learning rate ends here");
  v("train.tokens", c.train.tokens, Limits{}, "tokens to train for, in place of train.steps");
  v("train.minutes", c.train.minutes, Limits{}, "stop after this wall time even if steps are left; 0: no limit");
  v("train.global_batch", c.train.global_batch, Limits{1, 1e9}, "sequences per optimizer step, over all ranks");
  v("train.micro_batch", c.train.micro_batch, Limits{},
    "sequences per forward and backward on one rank; 0: as many as fall to it");
  v("train.lr", c.train.lr, Limits{0, 10}, "peak learning rate");
  v("train.min_lr", c.train.min_lr, Limits{0, 10}, "learning rate at the end of the cosine");
  v("train.warmup", c.train.warmup, Limits{}, "steps of linear warm-up");
  v("train.weight_decay", c.train.optimizer.weight_decay, Limits{0, 10}, "decoupled weight decay, of matrices only");
  v("train.clip", c.train.clip, Limits{}, "clip the global gradient norm to this; 0: never");
  v("train.betas", c.train.optimizer.betas, Limits{0, 0.99999999}, "decay rates of AdamW's two moments");
  v("train.eps", c.train.optimizer.eps, Limits{0, 1}, "epsilon of AdamW");
  v("train.dtype", c.train.dtype, Choices{"float32", "float64", "bfloat16"},
    "type of weights and activations; bfloat16 on cuda only, beside float32 master weights");
  v("train.recompute", c.train.recompute, recompute_choices(),
    "what backward computes again in place of keeping it: cheap (norms, convolution, gates), mlp (and the MLP's gate "
    "and up), all (all but a layer's input and its attention outputs); the bits of the results are those of none, "
    "unless parallel.transport = auto then chooses another transport");
  v("train.seed", c.train.seed, Limits{}, "seed of the initial weights and of sampling");
  v("train.eval_every", c.train.eval_every, Limits{}, "steps between evaluations on data.valid; 0: only at the end");
  v("train.eval_sequences", c.train.eval_sequences, Limits{},
    "sequences per evaluation during training; 0: all; the last one is always over all");
  v("train.sample_every", c.train.sample_every, Limits{}, "steps between samples of text; 0: only at the end");
  v("train.sample_tokens", c.train.sample_tokens, Limits{1, 1e6}, "tokens per sample");
  v("train.sample_prompt", c.train.sample_prompt, Limits{}, "what a sample starts with");
  v("train.temperature", c.train.temperature, Limits{0, 100}, "temperature of samples; 0: greedy");
  v("train.max_skips", c.train.max_skips, Limits{1, 1e6},
    "after this many skipped steps in a row go back to the newest checkpoint, leaving out the data that led there; "
    "stop if that was done before");
  v("train.spike_window", c.train.spike_window, Limits{},
    "skip steps whose loss or gradient norm leaps out of those of this many steps before; 0: never");
  v("train.spike_sigmas", c.train.spike_sigmas, Limits{}, "by how many standard deviations over their mean; 0: never");
  v("train.replica_check_every", c.train.replica_check_every, Limits{},
    "steps between checks that all data-parallel replicas hold the same weights; 0: never");

  v("parallel.tp", c.parallel.tp, Limits{1, 65536}, "tensor-parallel ranks");
  v("parallel.sp", c.parallel.sp, Limits{1, 65536}, "sequence-parallel ranks");
  v("parallel.dp", c.parallel.dp, Limits{0, 1048576}, "data-parallel ranks; 0: all that are left");
  v("parallel.fold", c.parallel.fold, Limits{0, 64},
    "segments per sequence rank, in snake order; 0: as many as the planner predicts to be fastest");
  v("parallel.transport", c.parallel.transport, transport_choices(),
    "how sequence ranks exchange keys+states: those each needs (group_cast) or all to all (gather), whole states to "
    "all "
    "(all_gather) or a slice of each (sliced); or all tokens of some heads (head_parallel); auto: the planner chooses "
    "for each layer");
  v("parallel.zero", c.parallel.zero, Limits{0, ZeroSharding::kMaxStage},
    "ZeRO stage: 0 replicates optimizer states, 1 shards them, 2 shards gradients too");

  v("checkpoint.every", c.checkpoint.every, Limits{},
    "steps between checkpoints; 0: only at the end and on a signal; \"auto\": by what a save is measured to cost and "
    "checkpoint.mtbf_hours");
  v("checkpoint.keep", c.checkpoint.keep, Limits{}, "newest checkpoints to keep; 0: all");
  v("checkpoint.keep_every", c.checkpoint.keep_every, Limits{},
    "keep checkpoints of steps divisible by this for good; 0: none");
  v("checkpoint.async", c.checkpoint.async, Limits{},
    "write behind training, which waits for a copy in host memory alone; false: wait for the disk");
  v("checkpoint.writers", c.checkpoint.writers, Choices{"rank", "node"},
    "who writes a checkpoint's files: every rank its own, or one rank of each node for all of it, which spares the "
    "file "
    "system small files at thousands of ranks; the contents are the same");
  v("checkpoint.mtbf_hours", c.checkpoint.mtbf_hours, Limits{0.001, 1e9},
    "mean time between failures of the whole job, for checkpoint.every = \"auto\"");

  v("run.dir", c.run.dir, Limits{}, "folder of the run: checkpoints, metrics, samples");
  v("run.device", c.run.device, Choices{"cpu", "cuda"}, "where to compute");
  v("run.log_every", c.run.log_every, Limits{1, 1e9}, "steps between progress lines");
  v("run.hang_timeout", c.run.hang_timeout, Limits{},
    "seconds after which an operation between ranks that does not end stops the job, naming the rank that is missing; "
    "0: never");
  v("run.memory_limit", c.run.memory_limit, Limits{},
    "GiB that a rank may take; a run that needs more is refused before it takes any; 0: what its device has free");
  v("run.plan", c.run.plan, Limits{},
    "saved plan to exchange by, from `transmamba plan --save` or another run's plan.json; empty: the planner makes "
    "one");
  v("run.profile", c.run.profile, Choices{"none", "comm", "ops"},
    "what to count and print at the end: calls and bytes between ranks beside the plan's, or the time of every op");
  v("run.tensorboard", c.run.tensorboard, Limits{}, "write event files for TensorBoard into the run folder");
  v("run.prometheus", c.run.prometheus, Limits{},
    "file that node_exporter's textfile collector reads (NAME.prom in its folder), one a run: the newest figures; "
    "empty: none");
  v("run.measure_kernels", c.run.measure_kernels, Limits{},
    "on a GPU, choose the fastest kernels by timing them once; the choice is kept in the run folder and the user's "
    "cache, since it fixes the bits");
  v("run.graph", c.run.graph, Limits{},
    "on a GPU, record a step once and issue it by a few calls from then on (CUDA graphs): the same bits; steps that "
    "run.profile times op by op are not recorded");
  v("run.threads", c.run.threads, Limits{0, 4096},
    "CPU threads per rank; 0: the cores of this host shared by its ranks");
  v("run.canonical", c.run.canonical, Limits{0, 1e6},
    "test mode: losses and parameters are the same to the last bit for every parallel.sp, fold, dp and zero; cuts each "
    "sequence into this many units (cpu, float64, slow; 0: off)");
}

// --- text of a value
// ---------------------------------------------------------------------------------------------------

std::string text_of(int64_t x) { return std::to_string(x); }
std::string text_of(const SaveEvery& x) { return x.automatic ? "\"auto\"" : text_of(x.steps); }
std::string text_of(bool x) { return x ? "true" : "false"; }
std::string text_of(const std::string& x) { return quoted(x); }
std::string text_of(Converter x) { return x == Converter::exact ? "\"exact\"" : "\"zero\""; }
std::string text_of(double x) {
  std::ostringstream out;
  out << std::setprecision(17) << x;
  double parsed = 0;
  for (int digits = 1; digits <= 17; ++digits) {  // the shortest text that reads back as x
    std::ostringstream shorter;
    shorter << std::setprecision(digits) << x;
    std::istringstream(shorter.str()) >> parsed;
    if (parsed == x) {
      out.str(shorter.str());
      break;
    }
  }
  const std::string text = out.str();
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}
std::string text_of(const std::array<double, 2>& x) { return "[" + text_of(x[0]) + ", " + text_of(x[1]) + "]"; }
std::string text_of(const std::vector<TransPoint>& x) {
  std::string out = "[";
  for (const TransPoint& p : x)
    out += (out.size() > 1 ? ", " : "") + (p.denominator ? quoted(to_string(p)) : to_string(p));
  return out + "]";
}

// --- value of a TOML node
// ----------------------------------------------------------------------------------------------

void read(const Source& s, const toml::node& node, SaveEvery& out, const Limits& limits) {
  if (node.is_string() && node.as_string()->get() == "auto") {
    out = {.steps = 0, .automatic = true};
    return;
  }
  if (!node.is_integer()) s.fail("must be a number of steps, or \"auto\"");
  out.automatic = false;
  read(s, node, out.steps, limits);
}
void read(const Source& s, const toml::node& node, Converter& out, const Choices& choices) {
  std::string name;
  read(s, node, name, choices);
  out = name == "exact" ? Converter::exact : Converter::zero;
}
void read(const Source& s, const toml::node& node, std::array<double, 2>& out, const Limits& limits) {
  const toml::array* array = node.as_array();
  if (!array || array->size() != 2) s.fail("must be a list of two numbers, for example [0.9, 0.95]");
  for (size_t i = 0; i < 2; ++i) read(s, (*array)[i], out[i], limits);
}
void read(const Source& s, const toml::node& node, std::vector<TransPoint>& out, const Limits&) {
  const toml::array* array = node.as_array();
  if (!array || array->empty()) s.fail("must be a list of TransPoints, for example [0, 128, \"1/4\"]");
  out.clear();
  for (const toml::node& entry : *array) {
    if (!entry.is_integer() && !entry.is_string())
      s.fail("holds an entry that is neither tokens (512) nor a fraction (\"1/4\")");
    try {
      out.push_back(
          parse_transpoint(entry.is_string() ? entry.as_string()->get() : std::to_string(entry.as_integer()->get())));
    } catch (const UserError& error) {
      s.fail(str(": ", error.what()));
    }
  }
}

// --- reading a table
// ---------------------------------------------------------------------------------------------------

// The valid key that is most like `key`.
std::string nearest_key(const std::string& key) {
  std::string best;
  size_t best_distance = std::string::npos;
  RunConfig config;
  visit_fields(config, [&](const std::string& name, auto&, const auto&, const char*) {
    const size_t distance = key_distance(key, name);
    if (best.empty() || distance < best_distance) best_distance = distance, best = name;
  });
  return best;
}

void apply_leaf(RunConfig& config, const Source& source, const toml::node& node) {
  bool known = false;
  visit_fields(config, [&](const std::string& name, auto& member, const auto& rule, const char*) {
    if (name != source.key) return;
    read(source, node, member, rule);
    config.origin[name] = source.where;
    known = true;
  });
  if (!known)
    throw UserError(str(source.where, ": unknown key ", source.key, "; did you mean ", nearest_key(source.key), "?"));
}

void apply_table(RunConfig& config, const toml::table& table, const std::string& prefix,
                 const std::function<std::string(const toml::node&)>& where) {
  for (const auto& [key, node] : table) {
    const std::string path = prefix.empty() ? std::string(key.str()) : prefix + "." + std::string(key.str());
    if (const toml::table* section = node.as_table()) {
      apply_table(config, *section, path, where);
    } else {
      apply_leaf(config, {path, where(node)}, node);
    }
  }
}

void apply_override(RunConfig& config, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) throw UserError(str("--set ", text, ": expected section.key=value"));
  const std::string key = text.substr(0, equals), value = text.substr(equals + 1), where = str("--set ", text);
  const auto parse = [&](const std::string& right) -> std::optional<toml::table> {
    const std::string line = str("x = ", right);
    try {
      check_config_text(line, where);
      return toml::parse(line);
    } catch (const std::exception&) {
      return std::nullopt;
    }
  };
  auto parsed = parse(value);
  if (!parsed) parsed = parse(quoted(value));
  if (!parsed) throw UserError(str(where, ": the value is no text (UTF-8)"));
  const toml::table& table = *parsed;
  if (table.size() != 1) throw UserError(str(where, ": one value expected"));
  apply_leaf(config, {key, where}, *table.get("x"));
  config.origin[key] = "--set";
}

}  // namespace

RunConfig parse_config(const std::string& text, const std::string& name, const std::vector<std::string>& overrides) {
  RunConfig config;
  visit_fields(config,
               [&](const std::string& key, auto&, const auto&, const char*) { config.origin[key] = "default"; });
  check_config_text(text, name);
  try {
    const toml::table table = toml::parse(text, name);
    apply_table(config, table, "", [&](const toml::node& node) { return str(name, ":", node.source().begin.line); });
  } catch (const toml::parse_error& error) {
    throw UserError(
        str(name, ":", error.source().begin.line, ":", error.source().begin.column, ": ", error.description()));
  }
  for (const std::string& entry : overrides) apply_override(config, entry);
  return config;
}

RunConfig load_config(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  return parse_config(read_config_text(file), file.string(), overrides);
}

std::string to_toml(const RunConfig& config) {
  std::ostringstream out;
  std::string section;
  visit_fields(config, [&](const std::string& key, const auto& member, const auto&, const char*) {
    const size_t dot = key.find('.');
    if (key.substr(0, dot) != section) {
      out << (section.empty() ? "[" : "\n[") << (section = key.substr(0, dot)) << "]\n";
    }
    const auto origin = config.origin.find(key);
    out << key.substr(dot + 1) << " = " << text_of(member) << "  # "
        << (origin == config.origin.end() ? "default" : origin->second) << "\n";
  });
  return out.str();
}

std::map<std::string, std::string> config_values(const RunConfig& config) {
  std::map<std::string, std::string> values;
  visit_fields(config, [&](const std::string& key, const auto& member, const auto&, const char*) {
    values[key] = text_of(member);
  });
  return values;
}

std::string explain_keys(const std::string& key) {
  std::ostringstream out;
  RunConfig config;
  visit_fields(config, [&](const std::string& name, const auto& member, const auto&, const char* meaning) {
    if (key.empty() || key == name)
      out << std::left << std::setw(24) << name << " " << std::setw(14) << text_of(member) << " " << meaning << "\n";
  });
  if (out.str().empty()) throw UserError(str("unknown key ", key, "; did you mean ", nearest_key(key), "?"));
  return out.str();
}

void validate_dtype(const RunConfig& c) {
  if (c.run.device != "cpu" || c.dtype() != DType::bf16) return;
  throw UserError("train.dtype = \"bfloat16\" needs run.device = \"cuda\"; on the CPU set train.dtype = \"float32\"");
}

namespace {

// The canonical mode: what it cannot do, and units that are whole chunks and that every rank and fold has as many of.
void validate_canonical(const RunConfig& c) {
  const int64_t units = c.run.canonical, shares = c.parallel.sp * c.parallel.fold, T = c.data.seq_len;
  if (units == 0) return;
  const std::string key = str("run.canonical = ", units);
  if (c.run.device != "cpu" || c.dtype() != DType::f64) {
    throw UserError(str(key, " needs run.device = \"cpu\" and train.dtype = \"float64\", not \"", c.run.device,
                        "\" and \"", c.train.dtype, "\""));
  }
  if (c.parallel.tp != 1) {
    throw UserError(str(key, " needs parallel.tp = 1, not ", c.parallel.tp,
                        ": sums over tensor-parallel ranks depend on how many there are"));
  }
  if (c.parallel.fold == 0) throw UserError(str(key, " needs a number of parallel.fold, not 0, the planner's choice"));
  if (c.parallel.transport == "head_parallel") {
    throw UserError(str(key, " cuts sequences, which parallel.transport = \"head_parallel\" does not: take another"));
  }
  if (units % shares != 0) {
    throw UserError(str(key, " must be a multiple of parallel.sp * parallel.fold = ", c.parallel.sp, " * ",
                        c.parallel.fold, ", and the same in all runs to be compared; ", round_up(units, shares),
                        " is one"));
  }
  if (T % (units * c.model.chunk) != 0) {
    throw UserError(
        str(key, " does not cut data.seq_len = ", T, " into units of whole chunks of model.chunk = ", c.model.chunk,
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
  require(c.train.min_lr <= c.train.lr, str("train.min_lr = ", c.train.min_lr, " is over train.lr = ", c.train.lr));
  require(c.train.steps > 0 || c.train.tokens > 0, "give train.steps or train.tokens: how long to train");
  require(c.train.steps == 0 || c.train.tokens == 0, "give train.steps or train.tokens, not both");
  require(!c.run.dir.empty(), "run.dir must be given: the folder of the run");
  require(!c.data.train.empty(), "data.train must be given: a token file written by `transmamba prepare`");
  const bool collected = c.run.prometheus.empty() || std::filesystem::path(c.run.prometheus).extension() == ".prom";
  require(collected, str("run.prometheus = ", c.run.prometheus,
                         " must end in .prom: node_exporter's textfile collector reads no other files"));
  validate_canonical(c);
}

}  // namespace tmamba
