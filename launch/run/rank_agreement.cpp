#include "launch/run/rank_agreement.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>

#include "data/io/sha256.h"
#include "dist/comm/collective_guard.h"
#include "dist/comm/print_line.h"
#include "kernels/base/check.h"
#include "launch/cli/format.h"
#include "launch/cli/version.h"

namespace tmamba {

namespace {

using nlohmann::json;

constexpr size_t kMostValues = 8;  // of one key, in a message

// Environment variables that change numbers, by selecting another algorithm, order of summation or precision. A name
// that ends with * stands for all that begin so.
constexpr auto kComparedVariables = std::to_array<std::string_view>({
    // MPI: algorithms of collectives
    "OMPI_MCA_coll*",
    "MPICH_*ALGORITHM*",
    "MPIR_CVAR_*ALGORITHM*",
    "I_MPI_ADJUST_*",
    "I_MPI_CBWR",
    // BLAS: the kernels of a CPU type
    "OPENBLAS_CORETYPE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "BLIS_ARCH_TYPE",
    // cuBLAS: workspaces decide between algorithms; TF32 and emulation change the precision
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_EMULATE_*",
    "CUBLAS_EMULATION_*",
    "NVIDIA_TF32_OVERRIDE",
    // NCCL: algorithm, protocol and channels decide the order of sums
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NCCL_NTHREADS",
    "NCCL_BUFFSIZE",
    "NCCL_*_NCHANNELS",
    "NCCL_*_CTAS",
    "NCCL_*_NRINGS",
    "NCCL_NVLS_ENABLE",
    "NCCL_COLLNET_ENABLE",
    "NCCL_TUNER_*",
    "NCCL_TOPO_FILE",
    "NCCL_GRAPH_FILE",
    "NCCL_CONF_FILE",
    // OpenMP: how iterations are assigned to threads
    "OMP_DYNAMIC",
    "OMP_SCHEDULE",
});
constexpr auto kReportedVariables =
    std::to_array<std::string_view>({"OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS",
                                     "MKL_NUM_THREADS", "BLIS_NUM_THREADS"});

// Options whose effect is compared in place of their text.
constexpr auto kOptionsByContent =
    std::to_array<std::string_view>({"set", "config", "checkpoint", "data", "tokenizer"});

// `pattern`: literal parts between *.
bool matches(std::string_view name, std::string_view pattern) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) return name == pattern;
  if (!name.starts_with(pattern.substr(0, star))) return false;
  name.remove_prefix(star);
  pattern.remove_prefix(star + 1);
  for (; !matches(name, pattern); name.remove_prefix(1)) {
    if (name.empty()) return false;
  }
  return true;
}

bool is_path_to_data(const std::string& key) {
  return key == "data.train" || key == "data.valid" || key == "data.tokenizer" ||
         (key.starts_with("data.") && key.ends_with(".path"));
}

// What a rank has read, or the problem: "U" (UserError) or "E" (any other error) and the message.
struct Reading {
  std::string problem;
  std::vector<RankFacts::Fact> facts;
};

Reading reading_of(const std::function<void(RankFacts&)>& read) {
  RankFacts facts;
  try {
    read(facts);
  } catch (const UserError& error) {
    return {str("U", error.what()), {}};
  } catch (const std::exception& error) {
    return {str("E", error.what()), {}};
  }
  return {"", facts.list()};
}

int64_t hash_of(const Reading& reading, bool binding) {
  json all = {binding ? reading.problem : ""};
  for (const RankFacts::Fact& fact : reading.facts) {
    if (fact.binding == binding) all.push_back({fact.key, fact.value});
  }
  const std::string hex = sha256_hex(all.dump(-1, ' ', false, json::error_handler_t::replace)).substr(0, 15);
  return static_cast<int64_t>(std::stoull(hex, nullptr, 16));
}

std::string text_of(const Reading& reading) {
  json facts = json::array();
  for (const auto& fact : reading.facts) facts.push_back({fact.key, fact.value, fact.shown, fact.binding});
  return json({reading.problem, facts}).dump(-1, ' ', false, json::error_handler_t::replace);
}

Reading reading_from(const std::string& text) {
  const json object = json::parse(text);
  Reading reading{object.at(0), {}};
  for (const json& fact : object.at(1)) reading.facts.push_back({fact.at(0), fact.at(1), fact.at(2), fact.at(3)});
  return reading;
}

// Ranks that read the same.
struct Group {
  std::vector<int> ranks;
  Reading reading;
};

// The lowest rank of each group broadcasts what all of it have read.
std::vector<Group> groups_of(Communicator& comm, const Reading& own) {
  int64_t hash = hash_of(own, true) ^ (hash_of(own, false) << 1);
  std::vector<int64_t> hashes(static_cast<size_t>(comm.size())), ones(hashes.size(), 1);
  comm.all_gather(Tensor(hashes.data(), {comm.size()}, DType::i64), Tensor(&hash, {1}, DType::i64), ones).wait();
  std::vector<Group> groups;
  std::map<int64_t, size_t> group_of_hash;
  for (int rank = 0; rank < comm.size(); ++rank) {
    const auto [found, is_new] = group_of_hash.emplace(hashes[static_cast<size_t>(rank)], groups.size());
    if (is_new) groups.emplace_back();
    groups[found->second].ranks.push_back(rank);
  }
  for (Group& group : groups) {
    group.reading = reading_from(broadcast_text(comm, text_of(own), group.ranks.front()));
  }
  return groups;
}

// "2 on ranks 0-1; 4 on rank 2".
std::string values_text(const std::vector<std::pair<std::string, std::vector<int>>>& values) {
  std::string text;
  for (size_t i = 0; i < std::min(values.size(), kMostValues); ++i) {
    std::vector<int> ranks = values[i].second;
    std::sort(ranks.begin(), ranks.end());
    text += str(i > 0 ? "; " : "", values[i].first, " on ", ranks_text(ranks));
  }
  return values.size() > kMostValues ? str(text, "; ", values.size() - kMostValues, " more values") : text;
}

// A line for each key whose values differ between the groups.
std::vector<std::string> differences(const std::vector<Group>& groups, bool binding) {
  std::vector<std::string> keys;
  std::map<std::string, std::map<std::string, size_t>> index;  // of a value in `values`, by key
  std::map<std::string, std::vector<std::pair<std::string, std::vector<int>>>> values;
  std::map<std::string, size_t> count;  // of ranks that have the key
  size_t ranks = 0;
  for (const Group& group : groups) {
    if (!group.reading.problem.empty()) continue;
    ranks += group.ranks.size();
    for (const RankFacts::Fact& fact : group.reading.facts) {
      if (fact.binding != binding) continue;
      if (count.emplace(fact.key, 0).second) keys.push_back(fact.key);
      count[fact.key] += group.ranks.size();
      auto& of_key = values[fact.key];
      const auto [at, is_new] = index[fact.key].emplace(fact.value, of_key.size());
      if (is_new) of_key.emplace_back(fact.shown.empty() ? fact.value : fact.shown, std::vector<int>{});
      std::vector<int>& on = of_key[at->second].second;
      on.insert(on.end(), group.ranks.begin(), group.ranks.end());
    }
  }
  std::vector<std::string> lines;
  for (const std::string& key : keys) {
    if (values[key].size() == 1 && count[key] == ranks) continue;
    lines.push_back(key + ": " + values_text(values[key]) + (count[key] < ranks ? "; not set on the others" : ""));
  }
  return lines;
}

[[noreturn]] void throw_problem(const std::string& problem) {
  if (problem[0] == 'U') throw UserError(problem.substr(1));
  throw Error(problem.substr(1));
}

[[noreturn]] void throw_disagreement(const std::vector<Group>& groups) {
  std::string text, kind = "U";
  for (const Group& group : groups) {
    if (group.reading.problem.empty()) continue;
    if (group.reading.problem[0] == 'E') kind = "E";
    text += str(text.empty() ? "" : "\n", ranks_text(group.ranks), ": ", group.reading.problem.substr(1));
  }
  const std::vector<std::string> lines = differences(groups, true);
  if (!lines.empty()) {
    text += str(text.empty() ? "" : "\n",
                "the ranks do not agree, so nothing was started. Start all of them with the same program, options, "
                "configuration, data and environment:");
    for (const std::string& line : lines) text += "\n  " + line;
  }
  throw_problem(kind + text);
}

}  // namespace

VariableUse use_of_variable(std::string_view name) {
  const auto in = [&](const auto& patterns) {
    return std::any_of(patterns.begin(), patterns.end(), [&](std::string_view p) { return matches(name, p); });
  };
  return in(kComparedVariables)   ? VariableUse::compared
         : in(kReportedVariables) ? VariableUse::reported
                                  : VariableUse::ignored;
}

void RankFacts::must_agree(const std::string& key, const std::string& value, const std::string& shown) {
  facts_.push_back({key, value, shown, true});
}

void RankFacts::may_differ(const std::string& key, const std::string& value) {
  facts_.push_back({key, value, "", false});
}

void RankFacts::add(const RunConfig& config) {
  for (const KeyValue& key : config_values(config)) {
    if (key.name == "run.threads") {
      may_differ(key.name, key.text);
    } else if (is_path_to_data(key.name)) {
      must_agree(key.name, key.text == "\"\"" ? "not set" : "set", key.text);
    } else {
      must_agree(key.name, key.text);
    }
  }
}

void RankFacts::add(const Command& command) {
  for (const auto& [name, text] : command.given()) {
    if (std::find(kOptionsByContent.begin(), kOptionsByContent.end(), name) != kOptionsByContent.end()) continue;
    must_agree("--" + name, text);
  }
}

void RankFacts::add(const std::string& key, const TokenFileInfo& info) {
  must_agree("content of " + key, identity_of(info),
             str(info.path.string(), " (", info.tokens, " tokens, text ", info.source_hash.substr(0, 12),
                 ", tokenizer ", info.tokenizer_hash.substr(0, 12), ")"));
}

void RankFacts::add_program() {
  const json build = build_json();
  for (const auto& [name, value] : build.items()) must_agree("program: " + name, value.get<std::string>());
  std::map<std::string, std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) variables[text.substr(0, equals)] = text.substr(equals + 1);
  }
  for (const auto& [name, value] : variables) {
    const VariableUse use = use_of_variable(name);
    if (use == VariableUse::compared) must_agree(name, value);
    if (use == VariableUse::reported) may_differ(name, value);
  }
}

void require_agreement(Communicator& comm, const std::function<void(RankFacts&)>& read) {
  const Reading own = reading_of(read);
  // The largest value and the complement of the smallest one.
  const int64_t binding = hash_of(own, true), reported = hash_of(own, false);
  std::array<int64_t, 4> extremes{binding, ~binding, reported, ~reported};
  comm.all_reduce(Tensor(extremes.data(), {4}, DType::i64), ReduceOp::max).wait();
  const bool agree = extremes[0] == ~extremes[1];
  if (agree && !own.problem.empty()) throw_problem(own.problem);
  if (agree && extremes[2] == ~extremes[3]) return;
  const std::vector<Group> groups = groups_of(comm, own);
  if (!agree) throw_disagreement(groups);
  if (comm.rank() != 0) return;
  for (const std::string& line : differences(groups, false)) {
    print_line("not the same on all ranks, which may make some slower: " + line);
  }
}

bool parse_together(World& world, const char* verb, Command& command, const std::vector<std::string>& arguments,
                    const std::function<void(RankFacts&)>& read) {
  bool runs = false;
  require_agreement(world.comm(), [&](RankFacts& facts) {
    facts.must_agree("verb", verb);
    facts.add_program();
    runs = command.parse(arguments, world.rank() == 0);
    facts.add(command);
    if (runs) read(facts);
  });
  return runs;
}

}  // namespace tmamba
