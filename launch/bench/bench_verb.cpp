// transmamba bench: times of ops and of training steps, relative to the rates of a GEMM and of a copy measured in the
// same run.
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/io/fs.h"
#include "launch/bench/bench_step.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/cli/statistics.h"
#include "launch/config/config.h"
#include "launch/plan/machine_rates.h"
#include "launch/run/rank_agreement.h"
#include "launch/state/devices.h"
#include "launch/train/op_profile.h"
#include "launch/verbs.h"

namespace tmamba {

namespace {

using nlohmann::json;

// `machine_file`: where to write the planner's rates of this machine; empty: nowhere.
json bench_ops(const RunConfig& config, World& world, Ops& ops, int64_t steps, const Roof& roof,
               const std::string& machine_file) {
  StepBench bench(config, world, ops);
  const auto timed = make_timed_ops(ops);
  bench.step(*timed);
  timed->reset();
  std::map<std::string, std::vector<double>> seconds;  // of each op, in each step
  for (int64_t i = 0; i < steps; ++i) {
    std::map<std::string, OpTiming> before = timed->timings();
    bench.step(*timed);
    for (const auto& [op, timing] : timed->timings()) seconds[op].push_back(timing.seconds - before[op].seconds);
  }
  if (!machine_file.empty()) {
    std::map<std::string, OpTiming> typical = timed->timings();
    for (auto& [op, timing] : typical) timing.seconds = static_cast<double>(steps) * median_of(seconds.at(op));
    MachineModel machine = measured_machine(machine_of_device(config), roof.flops, roof.bytes, typical);
    machine.name = str("a rank as measured by bench ops: ", name_of(config.run.device), ", ", omp_get_max_threads(),
                       " threads, ", name_of(config.dtype()));
    replace_text_durably(std::filesystem::absolute(machine_file), machine_to_json(machine), random_nonce());
  }
  json rows = op_rows(*timed, steps);
  for (json& row : rows) {
    row["fraction_of_roof"] =
        1e9 * std::max(row["gflops"].get<double>() / roof.flops, row["gb_per_s"].get<double>() / roof.bytes);
  }
  return rows;
}

RunConfig default_config() {
  return parse_config(
      "[model]\nvocab = 4096\ndim = 256\nheads = 4\nlayers = 8\nffn = 688\n"
      "schedule = [0, \"1/64\", \"1/32\", \"1/16\", \"1/8\", \"1/4\", \"1/2\", \"1/1\"]\n"
      "[data]\nseq_len = 1024\n[train]\nmicro_batch = 8\n",
      "bench's own configuration", {});
}

RunConfig config_of(const Command& command) {
  RunConfig config = command.has("config") ? load_config(command.get<std::string>("config"), {}) : default_config();
  std::vector<std::string> overrides = command.list("set");
  if (command.has("device")) overrides.push_back("run.device=" + command.get<std::string>("device"));
  config = parse_config(to_toml(config), "configuration", overrides);
  if (config.model.vocab == 0) config.model.vocab = 4096;
  return config;
}

int bench_on(World& world, const Command& command, const RunConfig& config) {
  const auto what = command.get<std::string>("action");
  const int threads = static_cast<int>(command.get<int64_t>("threads"));
  if (threads > 0) omp_set_num_threads(threads);
  if (what == "ops" && world.size() > 1) {
    throw UserError(
        str("bench ops runs on one rank, not ", world.size(), "; use bench step or bench comm for several ranks"));
  }
  const auto ops = ops_of(config, world);
  ops->measure_choices(true);
  const Roof roof = command.has("no-roof") ? Roof{} : measure_roof(*ops, config.dtype());
  const StepBenchOptions options{.steps = command.get<int64_t>("steps"),
                                 .micro_batches = what == "step" ? command.get<int64_t>("micro-batches") : 1,
                                 .roof = roof,
                                 .io_folder = command.has("io") ? command.get<std::string>("io") : ""};
  const json result = what == "step"
                          ? bench_step(config, world, *ops, options)
                          : bench_ops(config, world, *ops, options.steps, roof,
                                      command.has("save-machine") ? command.get<std::string>("save-machine") : "");
  if (world.rank() != 0) return kDone;
  if (command.json()) {
    std::printf("%s\n", result.dump(2).c_str());
    return kDone;
  }
  const std::string roofs = command.has("no-roof") ? ""
                                                   : str(": GEMM ", fixed(roof.flops / 1e9, 1), " GFLOP/s, copy ",
                                                         fixed(roof.bytes / 1e9, 1), " GB/s");
  std::printf("%s, %d threads, %s%s\n%s", name_of(config.run.device), omp_get_max_threads(), name_of(config.dtype()),
              roofs.c_str(), (what == "step" ? step_text(result) : op_table(result)).c_str());
  return kDone;
}

}  // namespace

int bench_verb(const Arguments& arguments) {
  if (!arguments.empty() && arguments.front() == "comm") return bench_comm({arguments.begin() + 1, arguments.end()});
  return run_main([&](World& world) {
    Command command("bench");
    RunConfig config;
    const bool runs = parse_together(world, "bench", command, arguments, [&](RankFacts& facts) {
      config = config_of(command);
      facts.add(config);
    });
    return runs ? bench_on(world, command, config) : static_cast<int>(kDone);
  });
}

}  // namespace tmamba
