// Validation loss over a token file.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "data/tokens/loader.h"
#include "dist/world/mesh.h"
#include "model/transmamba.h"

namespace tmamba {

struct EvalResult {
  double nats = 0;     // summed over targets
  int64_t tokens = 0;  // targets
  int64_t bytes = 0;   // of the text of these tokens
  double loss() const { return nats / static_cast<double>(tokens); }
  double bits_per_byte() const;
  bool finite() const { return std::isfinite(loss()) && std::isfinite(bits_per_byte()); }
};

// The metrics of a validation set: valid_loss and valid_bits_per_byte, for all sets but the first with /NAME.
nlohmann::json valid_metrics(const EvalResult& result, const std::string& name, bool first);

// The model to evaluate, on the ranks of `world`, which have the shape of `mesh`.
struct EvalContext {
  Ops& ops;
  Arena& scratch;
  TransMamba& model;
  const ModelRanks& ranks;
  Tensor params;
  const Mesh& mesh;
  Communicator& world;
  std::function<bool()> stop;  // asked before every batch, collective; none: never stops
};

// Evaluates the first `sequences` windows of `file` (0: all), assigned to the data-parallel ranks in turn. Collective;
// all ranks get the sums over all of them, or nothing where `stop` returned true.
std::optional<EvalResult> evaluate(const EvalContext& context, const TokenFile& file, int64_t sequences);

}  // namespace tmamba
