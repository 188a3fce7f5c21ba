#include "dist/planner/cost_fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "dist/planner/linear_solve.h"

namespace tmamba {

namespace {

constexpr double kMeasurementError = 0.03;
// Standard deviations of logarithms. The speed of a core is known roughly; links differ by orders of magnitude, more so
// where ranks share cores.
const double kRateError = std::log(5.0), kLinkError = std::log(50.0);
constexpr double kPriorContention = 0.1;

double exposed(const StepTime& time) { return time.tp + time.sp + time.dp; }

// A number of the machine that is fitted: its value in the prior, and how to scale it.
struct Unknown {
  std::string name;
  double prior;
  std::function<void(SharedMachine&, double factor)> scale;
  double error = kRateError;  // of the prior
};

auto scale_rates(std::vector<WorkKind> kinds) {
  return [kinds = std::move(kinds)](SharedMachine& m, double factor) {
    for (WorkKind kind : kinds) {
      for (auto* rates : {&m.machine.compute, &m.machine.streaming}) {
        (*rates)[kind].forward *= factor, (*rates)[kind].backward *= factor;
      }
    }
  };
}

std::vector<Unknown> unknowns_of(const MachineModel& prior, bool ranks, bool shared, bool nodes) {
  const auto compute = [&](WorkKind kind) { return prior.compute[kind].forward; };
  const auto streaming = [&](WorkKind kind) { return prior.streaming[kind].forward; };
  std::vector<Unknown> unknowns{{"flops_of_linear", prior.peak_flops * compute(WorkKind::linear),
                                 scale_rates({WorkKind::linear, WorkKind::head})},
                                {"flops_of_mixing", prior.peak_flops * compute(WorkKind::attention),
                                 scale_rates({WorkKind::attention, WorkKind::ssd, WorkKind::converter})},
                                {"bytes_of_elementwise", prior.memory_bandwidth * streaming(WorkKind::elementwise),
                                 scale_rates({WorkKind::elementwise})}};
  if (shared)
    unknowns.push_back({"contention", kPriorContention, [](SharedMachine& m, double f) { m.contention *= f; }});
  const auto add_link = [&](const std::string& name, Link MachineModel::*link) {
    unknowns.push_back({name + ".bandwidth", (prior.*link).bandwidth,
                        [link](SharedMachine& m, double f) { (m.machine.*link).bandwidth *= f; }, kLinkError});
    unknowns.push_back({name + ".latency", (prior.*link).latency,
                        [link](SharedMachine& m, double f) { (m.machine.*link).latency *= f; }, kLinkError});
  };
  if (ranks) add_link("inside", &MachineModel::inside);
  if (nodes) add_link("between", &MachineModel::between);
  return unknowns;
}

// The fit: unknowns in logarithms of factors on the prior.
class Problem {
 public:
  Problem(const MachineModel& prior, int slots, std::span<const MeasuredStep> steps) : steps_(steps) {
    base_ = {.machine = prior, .slots = slots, .contention = 0};
    bool ranks = false, shared = false, nodes = false;
    for (const MeasuredStep& step : steps) {
      TM_CHECK(step.step_seconds > 0 && step.ranks_per_node > 0, "a measured step of ", step.step_seconds, " s on ",
               step.ranks_per_node, " ranks a node");
      ranks = ranks || step.dims.ranks() > 1;
      shared = shared || step.ranks_per_node > 1;
      nodes = nodes || step.dims.ranks() > step.ranks_per_node;
    }
    if (shared && slots > 1) base_.contention = kPriorContention;
    unknowns_ = unknowns_of(prior, ranks, shared && slots > 1, nodes);
  }

  const std::vector<Unknown>& unknowns() const { return unknowns_; }

  SharedMachine machine(const Vector& x) const {
    SharedMachine machine = base_;
    for (size_t i = 0; i < x.size(); ++i) unknowns_[i].scale(machine, std::exp(x[i]));
    return machine;
  }

  // Standardized: of every step, then of every prior.
  Vector residuals(const Vector& x) const {
    const SharedMachine m = machine(x);
    Vector out;
    for (const MeasuredStep& step : steps_) {
      const StepTime time = predict(m, step).time;
      out.push_back(std::log(time.total() / step.step_seconds) / kMeasurementError);
      if (step.dims.ranks() > 1) {
        out.push_back((exposed(time) - step.exposed_seconds) / step.step_seconds / kMeasurementError);
      }
    }
    for (size_t i = 0; i < x.size(); ++i) out.push_back(x[i] / unknowns_[i].error);
    return out;
  }

 private:
  std::span<const MeasuredStep> steps_;
  SharedMachine base_;
  std::vector<Unknown> unknowns_;
};

double squares(const Vector& v) {
  double sum = 0;
  for (double x : v) sum += x * x;
  return sum;
}

// J^T J and J^T r by central differences.
struct Normal {
  Matrix matrix;
  Vector gradient;
};

Normal normal_equations(const Problem& problem, const Vector& x) {
  constexpr double kStep = 1e-4;
  const Vector r = problem.residuals(x);
  Matrix columns;
  for (size_t i = 0; i < x.size(); ++i) {
    Vector up = x, down = x;
    up[i] += kStep, down[i] -= kStep;
    Vector high = problem.residuals(up);
    const Vector low = problem.residuals(down);
    for (size_t k = 0; k < high.size(); ++k) high[k] = (high[k] - low[k]) / (2 * kStep);
    columns.push_back(std::move(high));
  }
  Normal normal{Matrix(x.size(), Vector(x.size())), Vector(x.size())};
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t k = 0; k < r.size(); ++k) normal.gradient[i] += columns[i][k] * r[k];
    for (size_t j = 0; j < x.size(); ++j) {
      for (size_t k = 0; k < r.size(); ++k) normal.matrix[i][j] += columns[i][k] * columns[j][k];
    }
  }
  return normal;
}

// The x of a x = b.
Vector solve(const Matrix& a, const Vector& b) {
  Matrix column;
  for (double value : b) column.push_back({value});
  Vector x;
  for (const Vector& row : solve_linear(a, column)) x.push_back(row.front());
  return x;
}

Vector minimize(const Problem& problem) {
  Vector x(problem.unknowns().size(), 0.0);
  double damping = 1e-3, least = squares(problem.residuals(x));
  for (int step = 0; step < 60 && damping < 1e12; ++step) {
    const Normal normal = normal_equations(problem, x);
    Matrix damped = normal.matrix;
    for (size_t i = 0; i < x.size(); ++i) damped[i][i] *= 1 + damping;
    const Vector move = solve(damped, normal.gradient);
    Vector next = x;
    for (size_t i = 0; i < x.size(); ++i) next[i] -= std::clamp(move[i], -1.0, 1.0);
    const double sum = squares(problem.residuals(next));
    if (!(sum < least)) {
      damping *= 8;
      continue;
    }
    const bool converged = least - sum < 1e-10 * least;
    x = std::move(next), least = sum, damping = std::max(damping / 8, 1e-9);
    if (converged) break;
  }
  return x;
}

// Standard deviation of unknown i around the minimum.
double deviation(const Matrix& matrix, size_t i) {
  Vector unit(matrix.size(), 0.0);
  unit[i] = 1;
  return std::sqrt(solve(matrix, unit)[i]);
}

}  // namespace

double SharedMachine::slowdown(int ranks_on_node) const {
  const double n = ranks_on_node, s = slots;
  return std::max(1.0, n / s) * (1 + contention * (std::min(n, s) - 1));
}

MachineModel SharedMachine::with(int ranks_on_node) const {
  TM_CHECK(ranks_on_node > 0, ranks_on_node, " ranks on a node");
  MachineModel out = machine;
  const double by = slowdown(ranks_on_node);
  out.ranks_per_node = ranks_on_node;
  for (auto* rates : {&out.compute, &out.streaming}) {
    for (Rate& rate : *rates) rate.forward /= by, rate.backward /= by;
  }
  out.launch_seconds *= by;
  out.inside.bandwidth /= by, out.inside.latency *= by;
  return out;
}

Prediction predict(const SharedMachine& machine, const MeasuredStep& step) {
  return predict(step.costs, step.dims, machine.with(step.ranks_per_node), step.transports);
}

CostFit fit_machine(const MachineModel& prior, int slots, std::span<const MeasuredStep> steps) {
  TM_CHECK(!steps.empty() && slots > 0, "nothing to fit: ", steps.size(), " steps, ", slots, " slots");
  const Problem problem(prior, slots, steps);
  const Vector x = minimize(problem);
  CostFit fit{.machine = problem.machine(x)};
  fit.machine.machine.name = prior.name + ", fitted";
  const Matrix matrix = normal_equations(problem, x).matrix;
  for (size_t i = 0; i < x.size(); ++i) {
    const Unknown& unknown = problem.unknowns()[i];
    fit.numbers.push_back({.name = unknown.name,
                           .prior = unknown.prior,
                           .value = unknown.prior * std::exp(x[i]),
                           .informed = deviation(matrix, i) < 0.5 * unknown.error});
  }
  for (const MeasuredStep& step : steps) {
    const double error = std::log(predict(fit.machine, step).time.total() / step.step_seconds);
    fit.step_error += error * error;
  }
  fit.step_error = std::sqrt(fit.step_error / static_cast<double>(steps.size()));
  return fit;
}

}  // namespace tmamba
