// The model's configuration: a plain struct, filled from the [model] section of a run's TOML file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/schedule.h"

namespace tmamba {

// The state that the SSM tokens start from at the TransPoint (model/SPEC.md section 3; paper table 10).
enum class Converter : uint8_t {
  exact,  // the Memory Converter: the scan over the prefix's own k and v (paper eq. 9)
  zero,   // zero: the suffix does not see the prefix
};
constexpr const char* name_of(Converter converter) { return converter == Converter::exact ? "exact" : "zero"; }

struct ModelConfig {
  int64_t vocab = 0;                 // 0: that of the tokenizer
  int64_t dim = 0;                   // d, width of the residual stream
  int64_t heads = 0;                 // H; head width D = d / H, even
  int64_t layers = 0;                // mixer + MLP pairs
  int64_t ffn = 0;                   // F, width of the MLP
  std::vector<TransPoint> schedule;  // P of layer i is schedule[i mod size]
  int64_t conv = 4;                  // W, taps of the causal convolution
  int64_t chunk = 64;                // Q, tokens per SSD chunk
  bool tied_head = false;            // the head's weight is the embedding's
  bool z_gate = true;                // SSM outputs are gated by SiLU(z)
  Converter converter = Converter::exact;
  double norm_eps = 1e-5;
  double rope_theta = 10000;
  double init_std = 0.02;

  int64_t head_dim() const { return dim / heads; }
  // Whether the layer's TransPoint can lie before the end of a sequence. The other layers have no SSM parameters.
  bool has_ssm(int64_t layer) const { return !schedule[static_cast<size_t>(layer) % schedule.size()].never(); }
};

// Throws UserError naming the key, the value and what it must be.
void validate(const ModelConfig& config);

}  // namespace tmamba
