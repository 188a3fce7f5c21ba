// The fit recovers the machine that steps were measured on, and reports what they do not determine.
#include "dist/planner/cost_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/dist/planner/measured_costs.h"

namespace tmamba {
namespace {

PlanDims dims_of(int tp, int sp, int dp, int64_t tokens) {
  return {.dim = 256,
          .heads = 8,
          .head_dim = 32,
          .ffn = 688,
          .vocab = 4096,
          .tokens = tokens,
          .transpoints = {0, tokens / 8, tokens / 4, tokens},
          .batch = 8 / dp,
          .global_batch = 8,
          .activation_bytes = 4,
          .tp = tp,
          .sp = sp,
          .dp = dp};
}

std::vector<MeasuredStep> steps_on(const SharedMachine& machine) {
  std::vector<MeasuredStep> steps;
  for (int64_t tokens : {512, 2048}) {
    for (const auto& [tp, sp, dp] : std::vector<std::array<int, 3>>{
             {1, 1, 1}, {2, 1, 1}, {1, 2, 1}, {1, 1, 2}, {4, 1, 1}, {1, 4, 1}, {1, 1, 4}, {2, 2, 2}}) {
      const PlanDims dims = dims_of(tp, sp, dp, tokens);
      MeasuredStep step{
          .costs = costs_of(dims), .dims = dims, .transports = {Transport{}}, .ranks_per_node = tp * sp * dp};
      const StepTime time = predict(machine, step).time;
      step.step_seconds = time.total(), step.exposed_seconds = time.tp + time.sp + time.dp;
      steps.push_back(step);
    }
  }
  return steps;
}

SharedMachine hidden_machine() {
  SharedMachine hidden{.machine = cpu_machine(), .slots = 4, .contention = 0.25};
  for (WorkKind kind : {WorkKind::linear, WorkKind::head}) {
    for (auto* rates : {&hidden.machine.compute, &hidden.machine.streaming}) {
      Rate& rate = (*rates)[kind];
      rate.forward *= 0.5, rate.backward *= 0.5;
    }
  }
  hidden.machine.inside = {.bandwidth = 0.7e9, .latency = 1e-3};
  return hidden;
}

double value_of(const CostFit& fit, const std::string& name) {
  const auto found =
      std::find_if(fit.numbers.begin(), fit.numbers.end(), [&](const FittedNumber& n) { return n.name == name; });
  return found == fit.numbers.end() ? std::nan("") : found->value;
}

TEST(CostFit, FindsTheMachineThatWasMeasured) {
  const SharedMachine hidden = hidden_machine();
  const std::vector<MeasuredStep> steps = steps_on(hidden);
  const CostFit fit = fit_machine(cpu_machine(), 4, steps);
  EXPECT_LT(fit.step_error, 0.01);
  EXPECT_NEAR(value_of(fit, "flops_of_linear") /
                  (0.5 * cpu_machine().compute[WorkKind::linear].forward * cpu_machine().peak_flops),
              1, 0.05);
  EXPECT_NEAR(value_of(fit, "inside.bandwidth") / 0.7e9, 1, 0.05);
  EXPECT_NEAR(value_of(fit, "inside.latency") / 1e-3, 1, 0.1);
  EXPECT_NEAR(fit.machine.contention / 0.25, 1, 0.1);
  // More ranks than it was fitted to.
  const PlanDims dims = dims_of(1, 4, 2, 2048);
  MeasuredStep more{.costs = costs_of(dims), .dims = dims, .transports = {Transport{}}, .ranks_per_node = 8};
  EXPECT_NEAR(predict(fit.machine, more).time.total() / predict(hidden, more).time.total(), 1, 0.03);
}

TEST(CostFit, ReportsWhatTheMeasurementsDoNotDetermine) {
  const std::vector<MeasuredStep> all = steps_on(hidden_machine());
  const std::vector<MeasuredStep> one{all.front()};  // one rank, one length
  const CostFit fit = fit_machine(cpu_machine(), 4, one);
  EXPECT_EQ(fit.numbers.size(), 3u);  // neither links nor sharing
  EXPECT_TRUE(std::isnan(value_of(fit, "inside.bandwidth")));
  EXPECT_FALSE(std::all_of(fit.numbers.begin(), fit.numbers.end(), [](const FittedNumber& n) { return n.informed; }));
  EXPECT_LT(fit.step_error, 0.02);
  for (const MeasuredStep& step : all) EXPECT_EQ(step.ranks_per_node, step.dims.ranks());
  const CostFit many = fit_machine(cpu_machine(), 4, all);
  const auto linear = std::find_if(many.numbers.begin(), many.numbers.end(),
                                   [](const FittedNumber& n) { return n.name == "flops_of_linear"; });
  EXPECT_TRUE(linear->informed);
}

TEST(CostFit, IsTheSameEveryTime) {
  const std::vector<MeasuredStep> steps = steps_on(hidden_machine());
  const CostFit a = fit_machine(cpu_machine(), 4, steps), b = fit_machine(cpu_machine(), 4, steps);
  for (size_t i = 0; i < a.numbers.size(); ++i) EXPECT_EQ(a.numbers[i].value, b.numbers[i].value);
}

TEST(CostFit, LinksBetweenNodesAreFittedWhereAJobSpansThem) {
  SharedMachine hidden = hidden_machine();
  hidden.machine.between = {.bandwidth = 0.2e9, .latency = 5e-3};
  std::vector<MeasuredStep> steps = steps_on(hidden);
  for (MeasuredStep& step : steps) {
    step.ranks_per_node = std::min<int>(step.ranks_per_node, 2);
    const StepTime time = predict(hidden, step).time;
    step.step_seconds = time.total(), step.exposed_seconds = time.tp + time.sp + time.dp;
  }
  const CostFit fit = fit_machine(cpu_machine(), 4, steps);
  EXPECT_NEAR(value_of(fit, "between.bandwidth") / 0.2e9, 1, 0.2);
  EXPECT_LT(fit.step_error, 0.01);
}

TEST(CostFit, RefusesNothingAndNonsense) {
  EXPECT_THROW(fit_machine(cpu_machine(), 4, {}), Error);
  std::vector<MeasuredStep> steps = steps_on(hidden_machine());
  steps.front().step_seconds = 0;
  EXPECT_THROW(fit_machine(cpu_machine(), 4, steps), Error);
}

TEST(SharedMachine, SlowsDownByContentionAndThenByShares) {
  const SharedMachine machine{.machine = cpu_machine(), .slots = 2, .contention = 0.1};
  EXPECT_DOUBLE_EQ(machine.slowdown(1), 1);
  EXPECT_DOUBLE_EQ(machine.slowdown(2), 1.1);
  EXPECT_DOUBLE_EQ(machine.slowdown(8), 4 * 1.1);
  EXPECT_EQ(machine.with(8).ranks_per_node, 8);
  EXPECT_THROW(machine.with(0), Error);
}

}  // namespace
}  // namespace tmamba
