// The settings of the optimizer: a plain struct, filled from the [train] section of a run's TOML file.
#pragma once

#include <array>

namespace tmamba {

struct OptimizerOptions {
  std::array<double, 2> betas{0.9, 0.95};  // decay rates of AdamW's two moments
  double eps = 1e-8;
  double weight_decay = 0.1;
};

}  // namespace tmamba
