// Held-out loss on a token file.
#pragma once

#include <cstdint>

#include "data/tokens/loader.h"
#include "dist/world/mesh.h"
#include "model/transmamba.h"

namespace tmamba {

struct EvalResult {
  double nats = 0;     // summed over targets
  int64_t tokens = 0;  // targets
  int64_t bytes = 0;   // of text that they stand for
  double loss() const { return nats / static_cast<double>(tokens); }
  double bits_per_byte() const;
};

// The model to evaluate, on the ranks of `world`, which have the shape of `mesh`.
struct EvalContext {
  Ops& ops;
  Arena& scratch;
  TransMamba& model;
  const ModelRanks& ranks;
  Tensor params;
  const Mesh& mesh;
  Communicator& world;
};

// Evaluates the first `sequences` windows of `file` (0: all), assigned to the data-parallel ranks in turn. Collective;
// all ranks get the sums over all of them.
EvalResult evaluate(const EvalContext& context, const TokenFile& file, int64_t sequences);

}  // namespace tmamba
