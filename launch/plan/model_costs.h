// Measures what the planner must know of a model (dist/planner/model_costs.h) with dry runs of the model's own code.
#pragma once

#include <optional>
#include <string>

#include "dist/planner/model_costs.h"
#include "dist/planner/recompute.h"
#include "kernels/base/dtype.h"
#include "model/config.h"
#include "model/optimizer_options.h"

namespace tmamba {

// The kind of an op by its name: of the head's GEMMs WorkKind::linear, of the Memory Converter's scans WorkKind::ssd.
// Embeddings are left out: they read only the rows of their tokens, not the whole table whose bytes are counted.
std::optional<WorkKind> kind_of(const std::string& op);

// The costs of a model of one and of two layers, over short sequences cut in different ways, determine the coefficients
// exactly: FLOPs and bytes are linear in the counts. Takes a few milliseconds. The schedule, layers and chunk of
// `config` are not used; config.vocab must be known.
ModelCosts measure_costs(const ModelConfig& config, const OptimizerOptions& optimizer, DType dtype, Recompute level);

}  // namespace tmamba
