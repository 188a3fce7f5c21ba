// TimedOps: passes every op on to another Ops and keeps, per op, how often it ran, for how long, how many
// floating-point operations it did and how many bytes its tensors hold. It waits for the device around every op, so the
// sum of the times is an upper bound of an undisturbed step.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kernels/ops/ops.h"

namespace tmamba {

struct OpTiming {
  int64_t calls = 0;
  double seconds = 0;
  double flops = 0;
  double bytes = 0;  // every tensor of a call counted once
};

class TimedOps : public Ops {
 public:
  virtual const std::map<std::string, OpTiming>& timings() const = 0;
  virtual void reset() = 0;
};

// `inner` must outlive the result.
std::unique_ptr<TimedOps> make_timed_ops(Ops& inner);

}  // namespace tmamba
