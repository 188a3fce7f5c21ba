// One training step on random tokens, as a rank of a mesh: what `bench step` and `bench ops` time.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "data/tokens/loader.h"
#include "dist/world/mesh.h"
#include "dist/world/world.h"
#include "launch/train/muted_communicator.h"
#include "launch/train/training_step.h"

namespace tmamba {

// Rates of this device, measured.
struct Roof {
  double flops = 0;  // per second, of a product of large square matrices of random numbers
  double bytes = 0;  // per second read and written by a copy that does not fit the caches
};
Roof measure_roof(Ops& ops, DType dtype);

// A TrainingStep of `micro_batches` micro-batches of train.micro_batch sequences (at least one) on each data-parallel
// rank. Collective.
class StepBench {
 public:
  StepBench(const RunConfig& config, World& world, Ops& ops, int64_t micro_batches = 1);

  void step(Ops& ops);
  // Takes the tokens of a micro-batch of this rank's data-parallel group, as training does.
  void take(const Batch& batch);
  // What this rank would save (run_slices).
  std::vector<TensorSlice> slices(const std::function<Tensor(const Tensor&)>& to_host);
  // Exchanges move nothing from now on.
  void mute(bool on);

  const RunPlan& plan() const { return plan_; }
  const MeshShape& shape() const { return mesh_.shape(); }
  const MeshCoordinates& coordinates() const { return mesh_.coordinates(); }
  const OpCounts& counts() const { return step_.measure().counts; }  // of a micro-batch on this rank
  int64_t sequences() const { return config_.train.global_batch; }
  int64_t tokens() const { return sequences() * plan_.dims.tokens; }
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
  Buffer taken_;  // tokens on the device
};

struct StepBenchOptions {
  int64_t steps = 5;
  int64_t micro_batches = 1;
  Roof roof = {};              // zeros where it was not measured
  std::string io_folder = "";  // where to write and read token files and checkpoints (bench_io); empty: nowhere
};

// Times of some steps, of the slowest rank; with several ranks also what no work hides of their exchanges, beside the
// planner's prediction. Collective; every rank gets the same.
nlohmann::json bench_step(const RunConfig& config, World& world, Ops& ops, const StepBenchOptions& options);
// They as text, every line ended.
std::string step_text(const nlohmann::json& result);

}  // namespace tmamba
