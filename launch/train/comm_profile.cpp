#include "launch/train/comm_profile.h"

#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

namespace tmamba {

namespace {

using nlohmann::json;

enum Axis : size_t { kTp, kSp, kDp, kZero, kWorld };

AxisTraffic& operator+=(AxisTraffic& a, const AxisTraffic& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

// What is reduced over ranks for one operation on one axis.
enum Figure : size_t { kCalls, kPlannedCalls, kBytes, kPlannedBytes, kDiffers, kFigures };

std::vector<int64_t> figures_of(const AxisTraffic& counted, const AxisTraffic& planned) {
  std::vector<int64_t> figures;
  for (size_t axis = 0; axis < kAxes.size(); ++axis) {
    const TrafficCounter &c = counted[axis], &p = planned[axis];
    for (size_t op = 0; op < kCollectives; ++op) {
      const bool differs = c.calls[op] != p.calls[op] || c.bytes[op] != p.bytes[op];
      figures.insert(figures.end(), {c.calls[op], p.calls[op], c.bytes[op], p.bytes[op], differs ? 1 : 0});
    }
  }
  return figures;
}

std::vector<int64_t> reduced(Communicator& world, std::vector<int64_t> figures, ReduceOp op) {
  world.all_reduce(Tensor(figures.data(), {std::ssize(figures)}, DType::i64), op).wait();
  return figures;
}

// The mean over the steps; an integer if all steps have the same value.
json per_step(int64_t total, int64_t steps) {
  if (total % steps == 0) return total / steps;
  return static_cast<double>(total) / static_cast<double>(steps);
}

}  // namespace

AxisTraffic planned_traffic(const Plan& plan, std::span<const Bucket> buckets, const Mesh& mesh, int64_t loss_rows,
                            int64_t vote_bytes) {
  const PlanDims& dims = plan.dims;
  const MeshCoordinates at = mesh.coordinates();
  const int zero_rank = mesh.shape().zero_rank(at);
  const int64_t rows = dims.batch * SequenceLayout(dims.layout()).local_tokens(at.sp);
  const GradientTraffic gradients = reduction_traffic(dims, buckets, zero_rank);
  AxisTraffic planned;
  planned[kSp] = dims.micro_batches() * sequence_traffic(plan, at.sp);
  planned[kTp] = dims.micro_batches() * tensor_traffic(dims, rows, loss_rows, at.tp);
  planned[kTp] += reductions(dims) * gradients.tp;
  planned[kZero] = reductions(dims) * gradients.zero;
  planned[kWorld] = all_reduce_traffic(vote_bytes, dims.ranks());
  planned[kZero] += parameter_traffic(dims, buckets, zero_rank);
  return planned;
}

CommProfile::CommProfile(Mesh& mesh, Communicator& world, const AxisTraffic& planned)
    : axes_{&mesh.tp(), &mesh.sp(), &mesh.dp(), &mesh.zero(), &world}, per_step_(planned) {}

AxisTraffic CommProfile::now() const {
  AxisTraffic traffic;
  for (size_t i = 0; i < axes_.size(); ++i) traffic[i] = axes_[i]->traffic();
  return traffic;
}

void CommProfile::begin_step() { begun_ = now(); }

void CommProfile::end_step() {
  const AxisTraffic ended = now();
  for (size_t i = 0; i < axes_.size(); ++i) counted_[i] += ended[i] - begun_[i];
  planned_ += per_step_;
  ++steps_;
}

json CommProfile::summary(Communicator& world) const {
  const std::vector<int64_t> mine = figures_of(counted_, planned_);
  const std::vector<int64_t> sum = reduced(world, mine, ReduceOp::sum), most = reduced(world, mine, ReduceOp::max);
  json rows = json::array();
  for (size_t axis = 0; axis < kAxes.size() && steps_ > 0; ++axis) {
    for (size_t op = 0; op < kCollectives; ++op) {
      const size_t first = (axis * kCollectives + op) * kFigures;
      const auto of = [&](const std::vector<int64_t>& figures, Figure figure) {
        return per_step(figures[first + figure], steps_);
      };
      if (sum[first + kCalls] == 0 && sum[first + kPlannedCalls] == 0) continue;
      rows.push_back({{"axis", kAxes[axis]},
                      {"operation", name_of(static_cast<Collective>(op))},
                      {"calls", of(sum, kCalls)},
                      {"planned_calls", of(sum, kPlannedCalls)},
                      {"bytes", of(sum, kBytes)},
                      {"planned_bytes", of(sum, kPlannedBytes)},
                      {"largest_bytes", of(most, kBytes)},
                      {"planned_largest_bytes", of(most, kPlannedBytes)},
                      {"ranks_that_differ", sum[first + kDiffers]}});
    }
  }
  return {{"steps", steps_}, {"ranks", world.size()}, {"operations", rows}};
}

std::string comm_table(const json& summary) {
  const auto line = [](const char* axis, const std::string& operation, const std::array<std::string, 6>& cells) {
    char text[160];
    std::snprintf(text, sizeof text, "%-5s %-14s %8s %8s %14s %14s %12s %12s\n", axis, operation.c_str(),
                  cells[0].c_str(), cells[1].c_str(), cells[2].c_str(), cells[3].c_str(), cells[4].c_str(),
                  cells[5].c_str());
    return std::string(text);
  };
  std::string text = str("Communication per step, mean of ", summary["steps"].dump(), ": sum over ",
                         summary["ranks"].dump(), " ranks, and the rank that receives most\n") +
                     line("axis", "operation", {"calls", "planned", "bytes", "planned", "most", "planned"});
  int64_t differences = 0;
  for (const json& row : summary["operations"]) {
    text += line(row["axis"].get<std::string>().c_str(), row["operation"].get<std::string>(),
                 {row["calls"].dump(), row["planned_calls"].dump(), row["bytes"].dump(), row["planned_bytes"].dump(),
                  row["largest_bytes"].dump(), row["planned_largest_bytes"].dump()});
    const auto differ = row["ranks_that_differ"].get<int64_t>();
    if (differ > 0) text += str("      differs from the plan on ", differ, differ == 1 ? " rank\n" : " ranks\n");
    differences += differ > 0;
  }
  return text + (differences == 0
                     ? std::string("Calls and bytes of every rank equal the plan.\n")
                     : str(differences, " of ", summary["operations"].size(), " operations differ from the plan.\n"));
}

}  // namespace tmamba
