// Held-out loss over a token file.
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

// The first `sequences` windows of `file` (0: all), dealt to the data-parallel ranks in turn; the sums come back on
// every rank of `world`, in the shape of `mesh`.
EvalResult evaluate(Ops& ops, Arena& scratch, TransMamba& model, const ModelRanks& ranks, const Tensor& params,
                    const TokenFile& file, int64_t sequences, const Mesh& mesh, Communicator& world);

}  // namespace tmamba
