// How the ranks of a run share the work: the sizes that follow from its configuration, and the transports of its
// layers, chosen by the planner, forced by parallel.transport, or read from a saved plan (run.plan). A pure function of
// the configuration (and of that file): all runs of a configuration make the same exchanges.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/planner/cost.h"
#include "dist/planner/plan.h"
#include "dist/world/mesh.h"
#include "launch/config/config.h"
#include "model/parallel.h"

namespace tmamba {

struct RunPlan {
  PlanDims dims;
  std::vector<Transport> transports;  // of each layer
  bool canonical = false;             // run.canonical
  ModelCosts costs = {};              // of the model at train.recompute
};

// The costs of the run's model, by dry runs. model.vocab must be known.
ModelCosts costs_of(const RunConfig& config);
// The planner's prediction of a run.
Prediction predict(const RunPlan& plan, const MachineModel& machine);

// One H200 a rank for run.device = "cuda", one core for "cpu".
MachineModel machine_of_device(const RunConfig& config);

// The sizes of a run on a mesh. model.vocab must be known. parallel.fold = 0 stays 0.
PlanDims plan_dims(const RunConfig& config, const MeshShape& mesh);

// Fold and transports without a saved plan: those that the configuration sets, the rest chosen by the planner. Throws
// UserError naming the number to change if such a run cannot exist.
RunPlan choose_plan(const RunConfig& config, const MeshShape& mesh, const MachineModel& machine);

// Fold and transports of a saved plan. Throws UserError naming the file if it is damaged, is for another run than the
// configuration's, or does not pass check_plan().
RunPlan read_plan(const std::string& file, const RunConfig& config, const MeshShape& mesh);

// The plan of a run, the same on all ranks of `world`: rank 0 reads run.plan, if there is one; if it throws, all throw.
RunPlan agree_plan(const RunConfig& config, const MeshShape& mesh, Communicator& world);

// Layout and exchanges of a planned run on this rank.
std::unique_ptr<ModelRanks> model_ranks(const RunPlan& plan, Ops& ops, Communicator& sp, Communicator& tp);

// Which transports a plan uses, as text: "group_cast+sliced", or "group_cast+sliced (5 layers), head_parallel (3)".
std::string transports_text(const std::vector<Transport>& transports);

}  // namespace tmamba
