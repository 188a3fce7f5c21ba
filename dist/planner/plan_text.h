// Prints plans, layouts and predictions: ASCII, at most 100 columns, a newline after every line.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dist/planner/cost.h"
#include "dist/sequence/layout.h"

namespace tmamba {

// Segments across, layers down: A attention, S SSM, x both (the TransPoint falls inside). Layers with one TransPoint
// share a line. With more segments than columns, a column stands for several.
std::string layout_picture(const SequenceLayout& layout);

// Each rank's tokens and its load in the layers of each TransPoint, in percent of the mean over ranks.
std::string load_table(const ModelCosts& costs, const PlanDims& dims, const MachineModel& machine);

// What each rank receives in every exchange, per TransPoint and transport: the most and the mean over ranks. Then the
// sum over all layers. `transports`: one for all layers, or one for each.
std::string exchange_table(const PlanDims& dims, const std::vector<Transport>& transports);

// The paper's cost of sequence mixing beside the forward FLOPs of each TransPoint, as the model's dry run counts them.
std::string flops_table(const ModelCosts& costs, const PlanDims& dims);

std::string step_table(const Prediction& prediction, const PlanDims& dims, const MachineModel& machine);
// What to set so that a run that needs more than `limit` bytes on a rank fits: the lowest level of recomputation above
// its own that suffices, else a smaller micro-batch at Recompute::all, else another layout. needed(level, batch): bytes
// of the rank that needs most.
std::string memory_advice(Recompute level, int64_t batch, double limit,
                          const std::function<double(Recompute, int64_t)>& needed);
// The prediction beside a dry run of this layout (launch/plan/plan_memory.h). `advice`: printed if the run does not
// fit.
std::string memory_table(const MemoryUse& memory, const MemoryUse& measured, const MachineModel& machine,
                         const std::string& advice);

// The first `count` of a ranking: of each tp x sp x dp x fold the best transport.
std::string ranking_table(const std::vector<LayoutChoice>& choices, size_t count);

// The size of a plan, its hash, and the result of check_plan().
std::string check_text(const Plan& plan);

// All tables for one run.
std::string plan_report(const ModelCosts& costs, const PlanDims& dims, const std::vector<Transport>& transports,
                        const MachineModel& machine, const MemoryUse& measured, const std::string& advice);

}  // namespace tmamba
