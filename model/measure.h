// Measures the memory and work of a model on one rank by a dry run: its own forward and backward with measuring arenas
// and ops that only count. Nothing is computed, sent or allocated, so any rank of any layout can be measured anywhere.
#pragma once

#include <map>
#include <string>

#include "kernels/ops/counting_ops.h"
#include "kernels/ops/timed_ops.h"
#include "model/transmamba.h"

namespace tmamba {

struct ModelMeasure {
  size_t saved_bytes = 0;                    // activations that backward needs, saved or recomputed
  size_t scratch_bytes = 0;                  // peak of staging buffers and temporaries
  OpCounts counts;                           // of one micro-batch
  std::map<std::string, OpTiming> ops = {};  // FLOPs and bytes by op; seconds are those of the dry run
  size_t activation_bytes() const { return saved_bytes + scratch_bytes; }
};

enum class Pass : uint8_t { forward, forward_backward };

// Measures one micro-batch of ranks.batch() sequences at a level of recomputation.
ModelMeasure measure_model(const ModelConfig& config, const ParameterTable& table, ModelRanks& ranks, DType dtype,
                           Device device, Recompute level = Recompute::none, Pass pass = Pass::forward_backward);

}  // namespace tmamba
