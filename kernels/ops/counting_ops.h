// CountingOps: an Ops that computes nothing and counts. Running the model's own forward and backward over it, with
// measuring arenas, gives the exact floating-point operations and memory of a step before anything is allocated.
#pragma once

#include <memory>

#include "kernels/ops/ops.h"

namespace tmamba {

// Floating-point operations (a multiply-add is two), causal attention counted exactly.
struct OpCounts {
  double linear = 0;       // matrix products with weights
  double attention = 0;    // scores and values over the prefix
  double ssd = 0;          // scan, converter and their chunk products
  double elementwise = 0;  // everything else, a few per element

  double matmul() const { return linear + attention + ssd; }
};

class CountingOps : public Ops {
 public:
  virtual const OpCounts& counts() const = 0;
};

std::unique_ptr<CountingOps> make_counting_ops(Device device);

}  // namespace tmamba
