// One training step on random tokens, on any mesh: `bench step` and `bench ops` time it.
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

// Measured peak rates of this device.
struct Roof {
  double flops = 0;  // per second, of a GEMM of large square random matrices
  double bytes = 0;  // per second, read and written by a copy larger than the caches
};
Roof measure_roof(Ops& ops, DType dtype);

// A TrainingStep of `micro_batches` micro-batches of train.micro_batch sequences (at least one) on each data-parallel
// rank. Collective.
class StepBench {
 public:
  StepBench(const RunConfig& config, World& world, Ops& ops, int64_t micro_batches = 1);

  void step(Ops& ops);
  // Shards a micro-batch of this rank's data-parallel group and copies it to the device, as training does.
  void take(const Batch& batch);
  // The slices that this rank would save (run_slices).
  std::vector<TensorSlice> slices(const std::function<Tensor(const Tensor&)>& to_host);
  // While muted, communication moves no data.
  void mute(bool on);

  const RunPlan& plan() const { return plan_; }
  const MeshShape& shape() const { return mesh_.shape(); }
  const MeshCoordinates& coordinates() const { return mesh_.coordinates(); }
  const OpCounts& counts() const { return step_.measure().counts; }  // per micro-batch, on this rank
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
  Roof roof = {};              // zeros if not measured
  std::string io_folder = "";  // directory for bench_io(); empty: no I/O timing
};

// Median step time of the slowest rank; with several ranks also the exposed communication, measured and predicted by
// the planner. Collective; every rank returns the same.
nlohmann::json bench_step(const RunConfig& config, World& world, Ops& ops, const StepBenchOptions& options);
// Formats the result as text; every line ends with a newline.
std::string step_text(const nlohmann::json& result);

}  // namespace tmamba
