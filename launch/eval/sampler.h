// Text from a model: prefill the prompt, then draw token after token.
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

// The tokens that follow `prompt` (which may be empty: a new document), at most max_tokens and up to the end of the
// document. Only tokens of the tokenizer are drawn. Draws are a pure function of (seed, position). on_token, where
// given, sees each token as it comes.
std::vector<int32_t> sample(Ops& ops, const ModelConfig& config, const ParameterTable& table, const Tensor& params,
                            const std::vector<int64_t>& transpoints, const Tokenizer& tokenizer,
                            const std::string& prompt, const SampleOptions& options,
                            const std::function<void(int32_t)>& on_token = {});

}  // namespace tmamba
