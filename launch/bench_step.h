// One training step on random tokens, as a rank of a mesh: what `bench step` and `bench ops` time.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "dist/mesh.h"
#include "dist/world.h"
#include "launch/muted_communicator.h"
#include "launch/training_step.h"

namespace tmamba {

// Rates of this device, measured.
struct Roof {
  double flops = 0;  // per second, of a product of large square matrices of random numbers
  double bytes = 0;  // per second read and written by a copy that does not fit the caches
};
Roof measure_roof(Ops& ops, DType dtype);

// A TrainingStep of one micro-batch of train.micro_batch sequences (at least one) on each data-parallel rank.
// Collective.
class StepBench {
 public:
  StepBench(const RunConfig& config, World& world, Ops& ops);

  void step(Ops& ops);
  // Exchanges move nothing from now on.
  void mute(bool on);

  const RunPlan& plan() const { return plan_; }
  const MeshShape& shape() const { return mesh_.shape(); }
  const OpCounts& counts() const { return step_.measure().counts; }  // of this rank
  int64_t tokens() const { return plan_.dims.batch * shape().dp * plan_.dims.tokens; }
  int64_t parameters() const { return step_.table().global_size(); }
  size_t activation_bytes() const { return step_.measure().activation_bytes(); }
  bool recorded() const { return step_.recorded(); }

 private:
  void load(const Tensor& tokens_Bn, const Tensor& targets_Bn) const;

  const RunConfig config_;
  std::unique_ptr<Communicator> device_;
  Mesh mesh_;
  RunPlan plan_;
  MutedCommunicator tp_, sp_, zero_, all_;
  TrainingStep step_;
};

// Times of `steps` steps, of the slowest rank; with several ranks also what no work hides of their exchanges, beside
// the planner's prediction. Collective; every rank gets the same.
nlohmann::json bench_step(const RunConfig& config, World& world, Ops& ops, int64_t steps, const Roof& roof);
// They as text, every line ended.
std::string step_text(const nlohmann::json& result);

}  // namespace tmamba
