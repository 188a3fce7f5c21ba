// CountingOps: an Ops that computes nothing and counts. Running the model's own forward and backward over it, with
// measuring arenas, gives the exact floating-point operations and memory of a step before anything is allocated.
#pragma once

#include <memory>

#include "kernels/ops/ops.h"

namespace tmamba {

class CountingOps : public Ops {
 public:
  virtual const OpCounts& counts() const = 0;
};

std::unique_ptr<CountingOps> make_counting_ops(Device device);

}  // namespace tmamba
