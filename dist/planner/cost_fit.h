// Fits the rates of a machine to measured steps: the inverse of the cost model of cost.h. Rates that the measurements
// do not determine keep the prior machine's values, and the result says which.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dist/planner/cost.h"

namespace tmamba {

// One layout's measured step.
struct MeasuredStep {
  ModelCosts costs = {};
  PlanDims dims = {};
  std::vector<Transport> transports = {};  // one for all layers, or one for each
  int ranks_per_node = 1;                  // as the job was placed
  double step_seconds = 0;
  double exposed_seconds = 0;  // exposed communication; used if there are several ranks
};

// A machine whose ranks slow each other down. With n ranks on a node of s slots each runs at 1 / slowdown(n) of the
// rate of one alone: slowdown(n) = max(1, n / s) * (1 + contention * (min(n, s) - 1)).
struct SharedMachine {
  MachineModel machine = {};  // of one rank alone
  int slots = 1;              // of a node: cores over threads of a rank, or GPUs
  double contention = 0;      // memory, caches and clock that ranks of a node share
  double slowdown(int ranks_on_node) const;
  // The machine that each rank sees where every node has `ranks_on_node`. Throws Error for less than one.
  MachineModel with(int ranks_on_node) const;
};

struct FittedNumber {
  std::string name;
  double prior = 0, value = 0;
  bool informed = false;  // the measurements reduce the prior's standard deviation by more than half
};

struct CostFit {
  SharedMachine machine = {};
  std::vector<FittedNumber> numbers = {};
  double step_error = 0;  // root mean square of log(predicted / measured) over the steps
};

// Least squares over log(step) and over exposed / step, each worth 3 %, with log-normal priors around `prior` (one
// standard deviation is a factor of 5, of links 50) by Levenberg-Marquardt with fixed steps: the same input gives the
// same bits. Links between nodes are fitted where a measured job spans nodes. Throws Error where there is nothing to
// fit or a time is not positive.
CostFit fit_machine(const MachineModel& prior, int slots, std::span<const MeasuredStep> steps);

// The model's step on such a machine; ranks_per_node as there.
Prediction predict(const SharedMachine& machine, const MeasuredStep& step);

}  // namespace tmamba
