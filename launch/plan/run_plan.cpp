#include "launch/plan/run_plan.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "dist/comm/collective_guard.h"
#include "launch/config/batch_split.h"
#include "launch/plan/model_costs.h"
#include "launch/state/run_state.h"
#include "model/schedule.h"

namespace tmamba {

namespace {

std::string read_text(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in || !std::filesystem::is_regular_file(file)) throw UserError("cannot read this file");
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// The fold and transports of a saved plan for a run of these dimensions. Throws UserError.
RunPlan usable(const Plan& plan, const RunConfig& config, PlanDims dims) {
  if (dims.fold == 0) dims.fold = plan.dims.fold;
  if (const std::string difference = dims_difference(plan.dims, dims); !difference.empty()) {
    throw UserError(str("the plan is for another run: it has ", difference,
                        "; make one with `transmamba plan CONFIG --save FILE`, or leave run.plan out"));
  }
  if (const std::vector<std::string> problems = check_plan(plan); !problems.empty()) {
    throw UserError(str("the plan is wrong: ", problems.front(),
                        problems.size() > 1 ? str(" (and ", problems.size() - 1, " more)") : ""));
  }
  const std::string& forced = config.parallel.transport;
  for (size_t layer = 0; layer < plan.transports.size(); ++layer) {
    const std::string planned = name_of(plan.transports[layer]);
    if (plan.transports[layer].head_parallel && config.run.canonical > 0) {
      throw UserError(str("the plan has ", planned, " in layer ", layer, ", which run.canonical cannot use"));
    }
    if (forced == "auto" || planned == forced) continue;
    throw UserError(str("the plan has ", planned, " in layer ", layer, ", but parallel.transport = \"", forced,
                        "\"; leave one of the two out"));
  }
  return {.dims = std::move(dims),
          .transports = plan.transports,
          .canonical = config.run.canonical > 0,
          .costs = costs_of(config)};
}

// A plan's fold and transports as text, to broadcast from rank 0: the fold, then the name of each transport, by line.
std::string to_text(const RunPlan& plan) {
  std::string text = str(plan.dims.fold, "\n");
  for (const Transport& transport : plan.transports) text += name_of(transport) + "\n";
  return text;
}

RunPlan from_text(const std::string& text, const RunConfig& config, PlanDims dims) {
  std::istringstream in(text);
  std::vector<Transport> transports;
  in >> dims.fold;
  for (std::string name; in >> name;) transports.push_back(transport_named(name));
  return {.dims = std::move(dims),
          .transports = std::move(transports),
          .canonical = config.run.canonical > 0,
          .costs = costs_of(config)};
}

}  // namespace

MachineModel machine_of_device(const RunConfig& config) {
  return config.run.device == Device::cuda ? h200_machine(config.model.head_dim()) : cpu_machine();
}

PlanDims plan_dims(const RunConfig& config, const MeshShape& mesh) {
  const ModelConfig& m = config.model;
  const DType dtype = config.dtype();
  PlanDims dims{.dim = m.dim,
                .heads = m.heads,
                .head_dim = m.head_dim(),
                .ffn = m.ffn,
                .vocab = m.vocab,
                .conv_width = m.conv,
                .chunk = m.chunk,
                .tied_head = m.tied_head,
                .z_gate = m.z_gate,
                .tokens = config.data.seq_len,
                .transpoints = transpoints(m.schedule, m.layers, config.data.seq_len),
                .batch = split_batch(config.train, mesh.dp).micro_batch,
                .global_batch = config.train.global_batch,
                .activation_bytes = static_cast<int64_t>(size_of(dtype)),
                .state_bytes = static_cast<int64_t>(size_of(accumulate_type(dtype))),
                .tp = mesh.tp,
                .sp = mesh.sp,
                .dp = mesh.dp,
                .fold = static_cast<int>(config.parallel.fold),
                .grain = config.grain()};
  static_cast<ParallelOptions&>(dims) = config.parallel;
  static_cast<ActivationOptions&>(dims) = config.train;
  return dims;
}

ModelCosts costs_of(const RunConfig& config) {
  return measure_costs(config.model, config.train.optimizer, config.dtype(), config.train.recompute);
}

Prediction predict(const RunPlan& plan, const MachineModel& machine) {
  return predict(plan.costs, plan.dims, machine, plan.transports);
}

RunPlan choose_plan(const RunConfig& config, const MeshShape& mesh, const MachineModel& machine) {
  RunPlan plan{.dims = plan_dims(config, mesh), .transports = {}, .canonical = config.run.canonical > 0};
  PlanDims& dims = plan.dims;
  const bool chooses_fold = dims.fold == 0;
  if (chooses_fold) dims.fold = 1;  // every larger fold needs at least what this one needs
  if (const std::string problem = dims_problem(dims); !problem.empty()) throw UserError(problem);
  plan.costs = costs_of(config);
  if (chooses_fold) {
    dims.fold = choose_fold(plan.costs, dims, machine);
    if (const std::string problem = dims_problem(dims); !problem.empty()) throw UserError(problem);
  }
  if (config.parallel.transport == "auto") {
    // The canonical mode is for comparing bits, not for speed, and cannot use every transport.
    plan.transports =
        plan.canonical ? std::vector<Transport>(dims.transpoints.size()) : choose_transports(plan.costs, dims, machine);
    return plan;
  }
  const Transport forced = transport_named(config.parallel.transport);
  if (const std::string problem = transport_problem(dims, forced); !problem.empty()) throw UserError(problem);
  plan.transports.assign(dims.transpoints.size(), forced);
  return plan;
}

RunPlan read_plan(const std::string& file, const RunConfig& config, const MeshShape& mesh) {
  try {
    return usable(plan_from_json(read_text(file)), config, plan_dims(config, mesh));
  } catch (const UserError& error) {
    throw UserError(str("run.plan = ", file, ": ", error.what()));
  }
}

RunPlan agree_plan(const RunConfig& config, const MeshShape& mesh, Communicator& world) {
  if (config.run.plan.empty()) return choose_plan(config, mesh, machine_of_device(config));
  std::string planned, problem;
  if (world.rank() == 0) {
    try {
      planned = to_text(read_plan(config.run.plan, config, mesh));
    } catch (const UserError& error) {
      problem = error.what();
    }
  }
  problem = broadcast_text(world, problem);
  if (!problem.empty()) throw UserError(problem);
  return from_text(broadcast_text(world, planned), config, plan_dims(config, mesh));
}

std::unique_ptr<ModelRanks> model_ranks(const RunPlan& plan, Ops& ops, Communicator& sp, Communicator& tp) {
  LayoutSpec layout = plan.dims.layout();
  layout.canonical = plan.canonical;
  return std::make_unique<ModelRanks>(layout, plan.dims.batch, ops, sp, tp, plan.transports);
}

std::string transports_text(const std::vector<Transport>& transports) {
  std::string text;
  for (const Transport& transport : all_transports()) {
    const auto layers = std::count(transports.begin(), transports.end(), transport);
    if (layers == 0) continue;
    text += (text.empty() ? "" : ", ") + name_of(transport);
    if (layers < std::ssize(transports)) text += str(" (", layers, layers == 1 ? " layer)" : " layers)");
  }
  return text;
}

}  // namespace tmamba
