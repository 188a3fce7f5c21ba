// What the ranks of a run exchange in a training step, counted by every communicator, beside what the plan and the
// closed forms say (run.profile = "comm").
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "dist/planner/traffic.h"
#include "dist/world/mesh.h"

namespace tmamba {

inline constexpr std::array<const char*, 5> kAxes{"tp", "sp", "dp", "zero", "world"};
using AxisTraffic = std::array<TrafficCounter, kAxes.size()>;  // in the order of kAxes

// What this rank will count in a step. `loss_rows`: rows whose logits exist together; `agreed_bytes`: of the message by
// which all ranks agree on a step.
AxisTraffic planned_traffic(const Plan& plan, std::span<const Bucket> buckets, const Mesh& mesh, int64_t loss_rows,
                            int64_t agreed_bytes);

class CommProfile {
 public:
  // Both must outlive it; `world`: what all ranks agree through.
  CommProfile(Mesh& mesh, Communicator& world, const AxisTraffic& planned);

  // Everything between the two is the step.
  void begin_step();
  void end_step();

  // By axis and operation, per step: calls and bytes of all ranks together, the bytes of the rank that receives most,
  // each as counted and as planned, and how many ranks differ from their plan. Every rank calls it and gets the same.
  // `host`: all ranks, host tensors.
  nlohmann::json summary(Communicator& host) const;

 private:
  AxisTraffic now() const;

  std::array<Communicator*, kAxes.size()> axes_;
  AxisTraffic per_step_;
  AxisTraffic begun_{}, counted_{}, planned_{};
  int64_t steps_ = 0;
};

// The summary as a table of at most 100 columns, every line ended.
std::string comm_table(const nlohmann::json& summary);

}  // namespace tmamba
