// class SaveInterval: when a run with checkpoint.every = "auto" saves.
#pragma once

#include <cstdint>
#include <optional>

namespace tmamba {

// The time between saves with the least expected loss (Young 1974; Daly 2006, first order): a save costs `cost_seconds`
// of training, a failure half an interval on average.
double best_interval(double cost_seconds, double mtbf_seconds);

// Used at every step boundary, on one rank, which sends the decision to the others.
class SaveInterval {
 public:
  explicit SaveInterval(double mtbf_hours) : mtbf_seconds_(3600 * mtbf_hours) {}

  // Records a step that took `seconds`; `saving`: a save was in flight.
  void step(double seconds, bool saving);
  // Records a finished save that blocked training for `stall_seconds`.
  void saved(double stall_seconds);
  // Whether the next save is due. Until a save's cost is known: after the first kStepsBefore steps.
  bool due() const;
  // Training time lost to a save: the stall, and the slowdown of the steps beside it.
  std::optional<double> cost() const { return cost_; }
  std::optional<double> seconds() const;

 private:
  static constexpr int kStepsBefore = 10;  // to measure the time of a step
  double mtbf_seconds_;
  double step_seconds_ = 0;  // of a step without a save: a running mean
  int64_t steps_ = 0;
  double lost_seconds_ = 0;  // slowdown by the save in flight, without the stall
  double since_ = 0;         // training time since the last save
  std::optional<double> cost_;
};

}  // namespace tmamba
