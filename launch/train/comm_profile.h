// class CommProfile: calls and bytes of a training step's communication as counted by every communicator, beside those
// that the plan and closed forms predict (run.profile = "comm").
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "dist/planner/traffic.h"
#include "dist/world/mesh.h"

namespace tmamba {

inline constexpr std::array kAxes{"tp", "sp", "dp", "zero", "world"};
using AxisTraffic = std::array<TrafficCounter, kAxes.size()>;  // in the order of kAxes

// Predicts the traffic of this rank in a step. `loss_rows`: rows whose logits exist at the same time; `vote_bytes`:
// TrainingStep::vote_bytes().
AxisTraffic planned_traffic(const Plan& plan, std::span<const Bucket> buckets, const Mesh& mesh, int64_t loss_rows,
                            int64_t vote_bytes);

class CommProfile {
 public:
  // Both must outlive this. `world`: all ranks, tensors of the device.
  CommProfile(Mesh& mesh, Communicator& world, const AxisTraffic& planned);

  // Traffic between the two is the step's.
  void begin_step();
  void end_step();

  // By axis and operation, per step: calls and bytes summed over ranks and the largest bytes of a rank, each as counted
  // and as planned, and how many ranks differ from their plan. Collective; all ranks get the same. `host`: all ranks,
  // host tensors.
  nlohmann::json summary(Communicator& host) const;

 private:
  AxisTraffic now() const;

  std::array<Communicator*, kAxes.size()> axes_;
  AxisTraffic per_step_;
  AxisTraffic begun_{}, counted_{}, planned_{};
  int64_t steps_ = 0;
};

// Returns the summary as a table of at most 100 columns; every line ends with a newline.
std::string comm_table(const nlohmann::json& summary);

}  // namespace tmamba
