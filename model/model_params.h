// Views of all parameters, or of their gradients, in a flat buffer, by their place in the model. C model width, V
// vocabulary of this tensor-parallel rank.
#pragma once

#include <vector>

#include "model/mixer_projections.h"
#include "model/mlp.h"

namespace tmamba {

struct LayerParams {
  Tensor mixer_norm_C;
  MixerParams mixer;
  Tensor mlp_norm_C;
  MlpParams mlp;
};

struct ModelParams {
  Tensor embedding_VC;
  std::vector<LayerParams> layers;
  Tensor norm_C;
  Tensor head_VC;  // the embedding where the head is tied to it

  static ModelParams of(const ParameterTable& table, const Tensor& flat, const ModelConfig& config);
};

}  // namespace tmamba
