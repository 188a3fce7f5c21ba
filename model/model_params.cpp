#include "model/model_params.h"

namespace tmamba {

ModelParams ModelParams::of(const ParameterTable& table, const Tensor& flat, const ModelConfig& config) {
  ModelParams params{.embedding_VC = table.view(flat, "embedding.weight"),
                     .layers = {},
                     .norm_C = table.view(flat, "norm.weight"),
                     .head_VC = table.view(flat, config.tied_head ? "embedding.weight" : "head.weight")};
  for (int64_t i = 0; i < config.layers; ++i) {
    params.layers.push_back({.mixer_norm_C = table.view(flat, str("layers.", i, ".mixer.norm.weight")),
                             .mixer = MixerParams::of(table, flat, config, i),
                             .mlp_norm_C = table.view(flat, str("layers.", i, ".mlp.norm.weight")),
                             .mlp = MlpParams::of(table, flat, i)});
  }
  return params;
}

}  // namespace tmamba
