// transmamba plan: predicts the cost of a run without ranks, GPU or data.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "data/io/fs.h"
#include "data/tokens/token_file.h"
#include "dist/planner/cost.h"
#include "dist/planner/plan_text.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/config/config.h"
#include "launch/config/schedule.h"
#include "launch/plan/plan_memory.h"
#include "launch/verbs.h"

namespace tmamba {

namespace {

using nlohmann::json;

// The vocabulary of the run: the configuration's, else --vocab, else that of the token file.
int64_t vocab_of(const RunConfig& config, const Command& command) {
  if (config.model.vocab > 0) return config.model.vocab;
  if (command.has("vocab")) return command.get<int64_t>("vocab");
  if (std::filesystem::exists(config.data.train)) return TokenFile(config.data.train).info().vocab_size;
  throw UserError(
      str("model.vocab is 0 and its source data.train = \"", config.data.train, "\" does not exist; give --vocab"));
}

MachineModel rates_of(const Command& command, const RunConfig& config) {
  if (!command.has("machine")) return machine_of_device(config);
  const std::string name = command.get<std::string>("machine");
  if (name == "h200") return h200_machine(config.model.head_dim());
  if (name == "cpu") return cpu_machine();
  std::ifstream in(name);
  if (!in || !std::filesystem::is_regular_file(name)) {
    throw UserError(str("--machine ", name, ": unknown machine; valid: h200, cpu, or a readable machine file"));
  }
  std::ostringstream text;
  text << in.rdbuf();
  if (!json::accept(text.str())) {
    throw UserError(
        str("--machine ", name, ": not JSON, as a machine file must be; --print-machine prints one to edit"));
  }
  try {
    return machine_from_json(text.str());
  } catch (const UserError& error) {
    throw UserError(str("--machine ", name, ": ", error.what()));
  }
}

// The same, with its memory limited to run.memory_limit.
MachineModel machine_of(const Command& command, const RunConfig& config) {
  MachineModel machine = rates_of(command, config);
  if (config.run.memory_limit > 0) machine.memory_bytes = config.run.memory_limit * static_cast<double>(1 << 30);
  return machine;
}

// The mesh of the configuration; without parallel.dp as many data-parallel ranks as --ranks leaves, or one.
MeshShape mesh_of(const RunConfig& config, int64_t ranks) {
  const ParallelConfig& p = config.parallel;
  if (p.dp == 0 && ranks > 0) return mesh_shape(p.tp, p.sp, 0, static_cast<int>(ranks));
  return {static_cast<int>(p.tp), static_cast<int>(p.sp), static_cast<int>(std::max<int64_t>(p.dp, 1))};
}

RunPlan plan_of(const RunConfig& config, const MeshShape& mesh, const MachineModel& machine) {
  return config.run.plan.empty() ? choose_plan(config, mesh, machine) : read_plan(config.run.plan, config, mesh);
}

json choice_json(const LayoutChoice& choice) {
  return {{"tp", choice.tp},
          {"sp", choice.sp},
          {"dp", choice.dp},
          {"fold", choice.fold},
          {"transport", name_of(choice.transport)},
          {"fits", choice.prediction.fits},
          {"step_s", choice.prediction.time.total()},
          {"mfu", choice.prediction.mfu}};
}

MemoryUse memory_of(const RankMemory& memory) {
  return {.parameters = static_cast<double>(memory.parameters),
          .gradients = static_cast<double>(memory.gradients),
          .optimizer = static_cast<double>(memory.optimizer),
          .activations = static_cast<double>(memory.saved),
          .scratch = static_cast<double>(memory.scratch)};
}

json memory_json(const MemoryUse& memory) {
  return {{"parameters", memory.parameters},   {"gradients", memory.gradients}, {"optimizer", memory.optimizer},
          {"activations", memory.activations}, {"temporaries", memory.scratch}, {"total", memory.total()}};
}

// The host memory that saving takes, and whether it fits a CPU's memory beside the rest.
std::string host_copy_text(const RankMemory& memory, const RunConfig& config, const MachineModel& machine) {
  const std::string text = str("Saving takes ", bytes_text(memory.host_copy), " of host memory per rank");
  if (config.run.device != Device::cpu) return text;
  const auto both = static_cast<double>(memory.total() + memory.host_copy);
  return str(text, ", ", bytes_text(memory.total() + memory.host_copy), " with the rest",
             both > machine.memory_bytes ? ": that does NOT fit; set checkpoint.async = false" : "");
}

json transport_names(const std::vector<Transport>& transports) {
  json names = json::array();
  for (const Transport& transport : transports) names.push_back(name_of(transport));
  return names;
}

// A planned run and what the verb prints of it.
struct Planned {
  RunConfig config;
  MachineModel machine;
  int64_t ranked = 0;  // the ranks of the ranking
  std::vector<LayoutChoice> ranking = {};
  std::string layout_problem = {};  // why the configuration's own layout cannot run on --ranks ranks
  RunPlan plan = {};                // of the configuration's layout, or the best one of the ranking
  Prediction prediction = {};
  RankMemory found = {};  // by a dry run of this layout
  std::string advice() const { return prediction.fits ? "" : memory_advice(config, plan, machine); }

  int64_t ranks() const { return plan.dims.ranks(); }
  int64_t steps() const { return Schedule(config).total_steps(); }
  double run_seconds() const { return static_cast<double>(steps()) * prediction.time.total(); }
  double device_hours() const { return run_seconds() * static_cast<double>(ranks()) / 3600; }
  int64_t checkpoint_bytes() const {
    return plan.costs.parameters * plan.dims.activation_bytes + plan.costs.optimizer_bytes;
  }
};

std::vector<LayoutChoice> ranking_of(const RunConfig& config, const MachineModel& machine, int64_t ranks) {
  PlanDims dims = plan_dims(config, {1, 1, 1});
  dims.batch = config.train.micro_batch;
  return rank_layouts(costs_of(config), dims, machine, ranks);
}

// What bounds the ranks of a configuration none of whose layouts has `ranks` ranks.
std::string limits_text(const RunConfig& config, int64_t ranks) {
  return str("no layout of ", ranks, " ranks can run this configuration: parallel.tp must divide ",
             std::gcd(config.model.heads, config.model.ffn), " (model.heads, model.ffn), parallel.sp is at most ",
             ceil_div(config.data.seq_len, config.model.chunk),
             " (chunks of data.seq_len), and parallel.dp * train.micro_batch must divide train.global_batch = ",
             config.train.global_batch, "; raise train.global_batch or data.seq_len, or take fewer ranks");
}

Planned planned(const Command& command, RunConfig config, const MachineModel& machine) {
  const auto asked = command.get<int64_t>("ranks");
  Planned run{.config = std::move(config), .machine = machine};
  try {
    run.plan = plan_of(run.config, mesh_of(run.config, asked), machine);
  } catch (const UserError& error) {
    if (asked == 0 || !run.config.run.plan.empty()) throw;
    run.layout_problem = error.what();
  }
  run.ranked = asked > 0 ? asked : run.ranks();
  run.ranking = ranking_of(run.config, machine, run.ranked);
  if (!run.layout_problem.empty()) {
    if (run.ranking.empty()) throw UserError(limits_text(run.config, asked));
    const LayoutChoice& best = run.ranking.front();
    ParallelConfig& parallel = run.config.parallel;
    parallel.tp = best.tp, parallel.sp = best.sp, parallel.dp = best.dp, parallel.fold = best.fold;
    parallel.transport = name_of(best.transport);
    run.plan = choose_plan(run.config, {best.tp, best.sp, best.dp}, machine);
  }
  run.prediction = predict(run.plan, machine);
  run.found = largest_memory(run.config, run.plan);
  return run;
}

json link_json(const Link& link) { return {{"bandwidth", link.bandwidth}, {"latency", link.latency}}; }

int64_t nodes_of(const Planned& run) { return ceil_div(run.ranks(), run.machine.ranks_per_node); }

// How long the whole run takes, what a checkpoint takes on disk, and the network that the times assume.
std::string run_text(const Planned& run) {
  const auto link = [](const Link& l) {
    return str(fixed(l.bandwidth / 1e9, l.bandwidth < 1e10 ? 1 : 0), " GB/s per rank, ", fixed(l.latency * 1e6, 0),
               " us");
  };
  const TrainConfig& train = run.config.train;
  const int64_t steps = run.steps();
  std::string text = "The whole run: neither train.steps nor train.tokens is set\n";
  if (steps > 0) {
    text = str("The whole run: ", steps, " steps, ", count_text(static_cast<double>(steps * step_tokens(run.config))),
               " tokens: ", duration(run.run_seconds()), " on ", run.ranks(), " ranks, ",
               fixed(run.device_hours(), run.device_hours() < 10 ? 3 : 0),
               " device hours, without evaluation and saving\n");
    if (train.minutes > 0 && run.run_seconds() > 60 * train.minutes) {
      text += str("train.minutes stops each attempt after ", duration(60 * train.minutes), "\n");
    }
  }
  return str(text, "A checkpoint: ", bytes_text(run.checkpoint_bytes()), "\nNetwork assumed: ", nodes_of(run),
             nodes_of(run) == 1 ? " node" : " nodes", " of up to ", run.machine.ranks_per_node,
             " ranks;\n  within a node ", link(run.machine.inside), "; between nodes ", link(run.machine.between),
             " (--machine FILE for another)\n");
}

json report_json(const Planned& run, size_t top) {
  const MemoryUse& memory = run.prediction.memory;
  const bool fits_with_copy = run.config.run.device != Device::cpu ||
                              memory.total() + static_cast<double>(run.found.host_copy) <= run.machine.memory_bytes;
  json choices = json::array();
  for (size_t i = 0; i < std::min(run.ranking.size(), top); ++i) choices.push_back(choice_json(run.ranking[i]));
  const PlanDims& dims = run.plan.dims;
  return {{"ranks", run.ranks()},
          {"layout", {{"tp", dims.tp}, {"sp", dims.sp}, {"dp", dims.dp}}},
          {"layout_problem", run.layout_problem},
          {"step_s", run.prediction.time.total()},
          {"mfu", run.prediction.mfu},
          {"memory_bytes", memory.total()},
          {"fits", run.prediction.fits && fits_with_copy},
          {"advice", run.advice()},
          {"memory", memory_json(memory)},
          {"measured_memory", memory_json(memory_of(run.found))},
          {"host_copy_bytes", run.found.host_copy},
          {"fold", dims.fold},
          {"transports", transport_names(run.plan.transports)},
          {"plan_hash", plan_hash(make_plan(dims, run.plan.transports))},
          {"run", {{"steps", run.steps()}, {"seconds", run.run_seconds()}, {"device_hours", run.device_hours()}}},
          {"checkpoint_bytes", run.checkpoint_bytes()},
          {"network",
           {{"nodes", nodes_of(run)},
            {"ranks_per_node", run.machine.ranks_per_node},
            {"inside", link_json(run.machine.inside)},
            {"between", link_json(run.machine.between)}}},
          {"ranking", choices}};
}

void print_report(const Planned& run, bool check, size_t top) {
  const RunPlan& plan = run.plan;
  if (!run.layout_problem.empty()) {
    std::printf("The configuration's own layout cannot run: %s.\nThe best layout of the ranking instead:\n\n",
                run.layout_problem.c_str());
  }
  std::printf(
      "%s\n",
      plan_report(plan.costs, plan.dims, plan.transports, run.machine, memory_of(run.found), run.advice()).c_str());
  std::printf("%s\n%s\n", host_copy_text(run.found, run.config, run.machine).c_str(), run_text(run).c_str());
  if (check) std::printf("%s\n", check_text(make_plan(plan.dims, plan.transports)).c_str());
  std::printf("Layouts of %lld ranks\n%s", static_cast<long long>(run.ranked), ranking_table(run.ranking, top).c_str());
}

}  // namespace

int plan_verb(const Arguments& arguments) {
  Command command("plan");
  if (!command.parse(arguments)) return kDone;
  RunConfig config = load_config(command.get<std::string>("config"), command.list("set"));
  validate(config.model);
  const MachineModel machine = machine_of(command, config);
  if (command.has("print-machine")) {
    std::printf("%s\n", machine_to_json(machine).c_str());
    return kDone;
  }
  config.model.vocab = vocab_of(config, command);
  const Planned run = planned(command, config, machine);
  if (command.has("save")) {
    replace_text_durably(std::filesystem::absolute(command.get<std::string>("save")),
                         plan_to_json(make_plan(run.plan.dims, run.plan.transports)), random_nonce());
  }
  const size_t top = static_cast<size_t>(command.get<int64_t>("top"));
  if (command.json()) {
    std::printf("%s\n", report_json(run, top).dump(2).c_str());
  } else {
    print_report(run, command.has("check"), top);
  }
  return kDone;
}

}  // namespace tmamba
