// transmamba plan: what a run will cost, before it runs: no ranks, no GPU, no data.
#include <algorithm>
#include <climits>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/tokens/token_file.h"
#include "dist/planner/cost.h"
#include "dist/planner/plan_text.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/config/config.h"
#include "launch/plan/plan_memory.h"
#include "launch/verbs.h"

namespace tmamba {

namespace po = boost::program_options;

namespace {

using nlohmann::json;

// The vocabulary of the run: the configuration's, else the token file's where it is there, else the one given.
int64_t vocab_of(const RunConfig& config, const Command& command) {
  if (config.model.vocab > 0) return config.model.vocab;
  if (command.has("vocab")) return command.get<int64_t>("vocab");
  if (std::filesystem::exists(config.data.train)) return TokenFile(config.data.train).info().vocab_size;
  throw UserError(
      str("model.vocab is 0 and data.train = \"", config.data.train, "\" is not there to take it from; give --vocab"));
}

MachineModel rates_of(const Command& command, const RunConfig& config) {
  if (!command.has("machine")) return machine_of_device(config);
  const std::string name = command.get<std::string>("machine");
  if (name == "h200") return h200_machine(config.model.head_dim());
  if (name == "cpu") return cpu_machine();
  std::ifstream in(name);
  if (!in || !std::filesystem::is_regular_file(name)) {
    throw UserError(str("--machine ", name, ": neither \"h200\" nor \"cpu\" nor a file that can be read"));
  }
  std::ostringstream text;
  text << in.rdbuf();
  if (!json::accept(text.str())) {
    throw UserError(str("--machine ", name, ": is no machine file, which is JSON; --print-machine prints one to edit"));
  }
  try {
    return machine_from_json(text.str());
  } catch (const UserError& error) {
    throw UserError(str("--machine ", name, ": ", error.what()));
  }
}

// The same, with no more memory than the run may take.
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

RunPlan plan_of(const Command& command, const RunConfig& config, const MachineModel& machine) {
  const MeshShape mesh = mesh_of(config, command.get<int64_t>("ranks"));
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

// What saving takes of the host, and whether it fits a CPU's memory beside the rest.
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

}  // namespace

int plan_verb(const Arguments& arguments) {
  Command command(
      "plan CONFIG [options]",
      "What a run will do and cost, without ranks, GPU or data: FLOPs beside the paper's, memory per rank, the "
      "sequence\n"
      "layout drawn per rank and layer, every exchange with its bytes, predicted step time and MFU, and the layouts "
      "of\n"
      "--ranks ranks ranked by predicted step time. Predictions come from a few measured rates of a machine.");
  command.options()("set", po::value<std::vector<std::string>>(), "override a key: --set parallel.sp=8 (repeatable)")(
      "ranks", po::value<int64_t>()->default_value(0),
      "rank the layouts of this many ranks, and take parallel.dp = 0 for as many as they leave; 0: those of the "
      "configuration's layout")("top", po::value<size_t>()->default_value(10), "how many of them to show")(
      "machine", po::value<std::string>(),
      "h200, cpu, or a machine file (JSON of measured rates); default: that of run.device, by which a run plans")(
      "print-machine", "print the machine's rates as JSON, to measure and edit, and stop")(
      "vocab", po::value<int64_t>(), "vocabulary, where neither configuration nor data tell it")(
      "save", po::value<std::string>(),
      "write the plan (every message of every rank) to this JSON file, for --set run.plan=FILE")(
      "check", "prove that every message has its partner and nothing is missing");
  command.positional("config");
  if (!command.parse(arguments)) return kDone;
  if (command.get<int64_t>("ranks") < 0 || command.get<int64_t>("ranks") > INT_MAX) {
    throw UserError(str("--ranks ", command.get<int64_t>("ranks"), ": must be from 0 to ", INT_MAX));
  }
  RunConfig config = load_config(command.required("config"), command.list("set"));
  validate(config.model);
  const MachineModel machine = machine_of(command, config);
  if (command.has("print-machine")) {
    std::printf("%s\n", machine_to_json(machine).c_str());
    return kDone;
  }
  config.model.vocab = vocab_of(config, command);
  const RunPlan plan = plan_of(command, config, machine);
  const PlanDims& dims = plan.dims;
  const std::vector<Transport>& transports = plan.transports;
  const RankMemory found = largest_memory(config, plan);
  const MemoryUse measured = memory_of(found);
  const int64_t ranks = command.get<int64_t>("ranks") > 0 ? command.get<int64_t>("ranks") : dims.ranks();
  const std::vector<LayoutChoice> ranking = rank_layouts(dims, machine, ranks);
  if (command.has("save")) {
    const std::string path = command.get<std::string>("save");
    std::ofstream out(path);
    out << plan_to_json(make_plan(dims, transports));
    if (!out.flush()) throw Error(str(path, ": cannot write"));
  }
  if (command.json()) {
    const Prediction prediction = predict(dims, machine, transports);
    const bool fits_with_copy =
        config.run.device != Device::cpu ||
        prediction.memory.total() + static_cast<double>(found.host_copy) <= machine.memory_bytes;
    json choices = json::array();
    for (size_t i = 0; i < std::min(ranking.size(), command.get<size_t>("top")); ++i)
      choices.push_back(choice_json(ranking[i]));
    std::printf("%s\n", json({{"ranks", dims.ranks()},
                              {"step_s", prediction.time.total()},
                              {"mfu", prediction.mfu},
                              {"memory_bytes", prediction.memory.total()},
                              {"fits", prediction.fits && fits_with_copy},
                              {"advice", prediction.fits ? "" : memory_advice(dims, transports, machine)},
                              {"memory", memory_json(prediction.memory)},
                              {"measured_memory", memory_json(measured)},
                              {"host_copy_bytes", found.host_copy},
                              {"fold", dims.fold},
                              {"transports", transport_names(transports)},
                              {"plan_hash", plan_hash(make_plan(dims, transports))},
                              {"ranking", choices}})
                            .dump(2)
                            .c_str());
    return kDone;
  }
  std::printf("%s\n", plan_report(dims, transports, machine, measured).c_str());
  std::printf("%s\n\n", host_copy_text(found, config, machine).c_str());
  if (command.has("check")) std::printf("%s\n", check_text(make_plan(dims, transports)).c_str());
  std::printf("Layouts of %lld ranks\n%s", static_cast<long long>(ranks),
              ranking_table(ranking, command.get<size_t>("top")).c_str());
  return kDone;
}

}  // namespace tmamba
