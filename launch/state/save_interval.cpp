#include "launch/state/save_interval.h"

#include <algorithm>
#include <cmath>

namespace tmamba {

double best_interval(double cost_seconds, double mtbf_seconds) { return std::sqrt(2 * cost_seconds * mtbf_seconds); }

void SaveInterval::step(double seconds, bool saving) {
  since_ += seconds;
  if (saving) {
    lost_seconds_ += seconds - step_seconds_;
    return;
  }
  ++steps_;
  // The first step of a process includes warm-up and is not representative.
  if (steps_ == 1) return;
  const double weight = 1.0 / static_cast<double>(std::min<int64_t>(steps_ - 1, 100));
  step_seconds_ += weight * (seconds - step_seconds_);
}

void SaveInterval::saved(double stall_seconds) {
  const double cost = std::max(stall_seconds + lost_seconds_, 1e-3);
  cost_ = cost_ ? 0.5 * (*cost_ + cost) : cost;
  lost_seconds_ = since_ = 0;
}

bool SaveInterval::due() const {
  if (!cost_) return steps_ >= kStepsBefore;
  return since_ >= *seconds();
}

std::optional<double> SaveInterval::seconds() const {
  if (!cost_) return std::nullopt;
  return best_interval(*cost_, mtbf_seconds_);
}

}  // namespace tmamba
