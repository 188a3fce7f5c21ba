// Generates text from a model: prefills the prompt, then draws one token after another.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/tokens/tokenizer.h"
#include "kernels/ops/ops.h"
#include "model/config.h"
#include "model/parameters.h"

namespace tmamba {

struct SampleOptions {
  int64_t max_tokens = 128;
  double temperature = 0.8;  // 0: the most likely token
  int64_t top_k = 0;         // 0: all tokens
  uint64_t seed = 0;
};

// The model to sample from. `params` is whole: not a tensor-parallel shard.
struct SampleContext {
  Ops& ops;
  const ModelConfig& config;
  const ParameterTable& table;
  Tensor params;
  const std::vector<int64_t>& transpoints;
  const Tokenizer& tokenizer;
};

// Returns the tokens that follow `prompt` (empty: a new document), at most max_tokens and up to the end of the
// document. Draws only tokens of the tokenizer; a draw is a pure function of (seed, position). Ends early where
// stop, if given, returns true; it is asked before every token.
std::vector<int32_t> sample(const SampleContext& context, const std::string& prompt, const SampleOptions& options,
                            const std::function<bool()>& stop = {});

}  // namespace tmamba
