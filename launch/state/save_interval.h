// class SaveInterval: when a run with checkpoint.every = "auto" saves.
#pragma once

#include <cstdint>
#include <optional>

namespace tmamba {

// The time between saves that loses least (Young 1974; Daly 2006, first order): saving costs `cost` seconds of training
// each time, a failure half an interval on average.
double best_interval(double cost_seconds, double mtbf_seconds);

// Fed at every step boundary, on one rank; the others are told what it says.
class SaveInterval {
 public:
  explicit SaveInterval(double mtbf_hours) : mtbf_seconds_(3600 * mtbf_hours) {}

  // A step that took `seconds`, with a save in flight or without.
  void step(double seconds, bool saving);
  // A save has ended that kept training waiting for so long.
  void saved(double stall_seconds);
  // The time since the last save is up. Until a cost is known: after the first steps, as soon as it can be measured.
  bool due() const;
  // What a save costs in time lost to training: the stall, and what the steps beside it took longer.
  std::optional<double> cost() const { return cost_; }
  std::optional<double> seconds() const;

 private:
  static constexpr int kStepsBefore = 10;  // that say how long a step takes
  double mtbf_seconds_;
  double step_seconds_ = 0;  // of a step without a save: a running mean
  int64_t steps_ = 0;
  double lost_seconds_ = 0;  // to the save in flight, beside the stall
  double since_ = 0;         // training time since the last save
  std::optional<double> cost_;
};

}  // namespace tmamba
