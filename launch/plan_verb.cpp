// transmamba plan: what a run will cost, before it runs: no ranks, no GPU, no data.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/token_file.h"
#include "dist/cost.h"
#include "dist/plan_text.h"
#include "launch/command.h"
#include "launch/config.h"
#include "launch/trainer.h"
#include "launch/verbs.h"
#include "model/schedule.h"

namespace tmamba {

namespace po = boost::program_options;

namespace {

using nlohmann::json;

PlanDims dims_of(const RunConfig& config, int64_t vocab, int64_t activation_bytes) {
  const ModelConfig& m = config.model;
  PlanDims dims{.dim = m.dim,
                .heads = m.heads,
                .head_dim = m.head_dim(),
                .ffn = m.ffn,
                .vocab = m.vocab > 0 ? m.vocab : vocab,
                .conv_width = m.conv,
                .chunk = m.chunk,
                .tied_head = m.tied_head,
                .z_gate = m.z_gate,
                .tokens = config.data.seq_len,
                .transpoints = transpoints(m.schedule, m.layers, config.data.seq_len)};
  dims.tp = static_cast<int>(config.parallel.tp), dims.sp = static_cast<int>(config.parallel.sp);
  dims.dp = static_cast<int>(std::max<int64_t>(config.parallel.dp, 1)),
  dims.fold = static_cast<int>(config.parallel.fold);
  dims.grain = config.grain();
  dims.zero = static_cast<int>(config.parallel.zero);
  dims.activation_bytes = activation_bytes;
  dims.state_bytes = static_cast<int64_t>(size_of(accumulate_type(config.dtype())));
  dims.global_batch = config.train.global_batch;
  dims.batch = config.train.micro_batch > 0 ? config.train.micro_batch
                                            : std::max<int64_t>(1, config.train.global_batch / dims.dp);
  return dims;
}

// The vocabulary of the run: the configuration's, else the token file's where it is there, else the one given.
int64_t vocab_of(const RunConfig& config, const Command& command) {
  if (config.model.vocab > 0) return config.model.vocab;
  if (command.has("vocab")) return command.get<int64_t>("vocab");
  if (std::filesystem::exists(config.data.train)) return TokenFile(config.data.train).info().vocab_size;
  throw UserError(
      str("model.vocab is 0 and data.train = \"", config.data.train, "\" is not there to take it from; give --vocab"));
}

MachineModel machine_of(const Command& command, const RunConfig& config) {
  const std::string name = command.get<std::string>("machine");
  if (name == "h200") return h200_machine(config.model.head_dim());
  if (name == "cpu") return cpu_machine();
  std::ifstream in(name);
  if (!in) throw UserError(str("--machine ", name, ": neither \"h200\" nor \"cpu\" nor a file that can be read"));
  std::ostringstream text;
  text << in.rdbuf();
  return machine_from_json(text.str());
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
      "rank the layouts of this many ranks; 0: those of the configuration's layout")(
      "top", po::value<size_t>()->default_value(10), "how many of them to show")(
      "machine", po::value<std::string>()->default_value("h200"),
      "h200, cpu, or a machine file (JSON of measured rates)")(
      "print-machine", "print the machine's rates as JSON, to measure and edit, and stop")(
      "activation-bytes", po::value<int64_t>(),
      "bytes of an activation; default: 2 (bfloat16) on a GPU machine, else those of train.dtype")(
      "vocab", po::value<int64_t>(), "vocabulary, where neither configuration nor data tell it")(
      "save", po::value<std::string>(), "write the plan (every message of every rank) to this JSON file")(
      "check", "prove that every message has its partner and nothing is missing");
  command.positional("config");
  if (!command.parse(arguments)) return kDone;
  const RunConfig config = load_config(command.required("config"), command.list("set"));
  validate(config.model);
  const MachineModel machine = machine_of(command, config);
  if (command.has("print-machine")) {
    std::printf("%s\n", machine_to_json(machine).c_str());
    return kDone;
  }
  const int64_t native = static_cast<int64_t>(size_of(config.dtype()));
  const int64_t activation_bytes = command.has("activation-bytes") ? command.get<int64_t>("activation-bytes")
                                   : command.get<std::string>("machine") == "cpu" ? native
                                                                                  : 2;
  const PlanDims dims = dims_of(config, vocab_of(config, command), activation_bytes);
  if (const std::string problem = dims_problem(dims); !problem.empty()) throw UserError(problem);
  const Transport transport{
      .keys = config.parallel.keys == "gather" ? KeyTransport::gather : KeyTransport::group_cast,
      .state = config.parallel.states == "sliced" ? StateTransport::sliced : StateTransport::all_gather};
  const std::vector<Transport> transports(dims.transpoints.size(), transport);
  const int64_t ranks = command.get<int64_t>("ranks") > 0 ? command.get<int64_t>("ranks") : dims.ranks();
  const std::vector<LayoutChoice> ranking = rank_layouts(dims, machine, ranks);
  if (command.has("save")) {
    const std::string path = command.get<std::string>("save");
    std::ofstream out(path);
    out << plan_to_json(make_plan(dims, transport));
    if (!out.flush()) throw Error(str(path, ": cannot write"));
  }
  if (command.json()) {
    const Prediction prediction = predict(dims, machine, transports);
    json choices = json::array();
    for (size_t i = 0; i < std::min(ranking.size(), command.get<size_t>("top")); ++i)
      choices.push_back(choice_json(ranking[i]));
    std::printf("%s\n", json({{"ranks", dims.ranks()},
                              {"step_s", prediction.time.total()},
                              {"mfu", prediction.mfu},
                              {"memory_bytes", prediction.memory.total()},
                              {"plan_hash", plan_hash(make_plan(dims, transport))},
                              {"ranking", choices}})
                            .dump(2)
                            .c_str());
    return kDone;
  }
  std::printf("%s\n", plan_report(dims, transports, machine).c_str());
  if (command.has("check")) std::printf("%s\n", check_text(make_plan(dims, transport)).c_str());
  std::printf("Layouts of %lld ranks\n%s", static_cast<long long>(ranks),
              ranking_table(ranking, command.get<size_t>("top")).c_str());
  return kDone;
}

}  // namespace tmamba
