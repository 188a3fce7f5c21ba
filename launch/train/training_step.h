// class TrainingStep: one optimizer step of this rank and all that it needs - parameters, gradients, activations,
// optimizer state, the exchanges with other ranks - planned by a dry run and allocated once. On a device that can
// record, a step is issued by a few calls (CUDA graphs): whether it is applied, and by what its gradients are scaled,
// is decided on the device. Knows no data, no files, no logs.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "dist/world/mesh.h"
#include "dist/zero/grad_reducer.h"
#include "launch/plan/run_plan.h"
#include "model/measure.h"
#include "model/optimizer.h"

namespace tmamba {

// The ranks this one works with: along the axes of the mesh, and all of them. Tensors are the device's.
struct StepRanks {
  Communicator &tp, &sp, &zero, &all;
  MeshShape shape;
  MeshCoordinates at;
};

struct StepOptions {
  int64_t micro_batches = 1;
  int64_t global_sequences = 1;  // over all data-parallel ranks and micro-batches: what the loss is the mean over
  bool record = true;
};

// What the ranks want of a step's boundary; of each how many want it.
enum StepWish : int64_t { kTimeUp, kStop, kSave, kReady, kStepWishes };
using StepWishes = std::array<double, kStepWishes>;

struct StepOrders {
  int64_t number = 1;  // among the steps taken, from 1
  double lr = 0;
  StepLimits limits;
};

// Where the host's time in a step went, in seconds. On a GPU the wait for the slowest rank is in `update`.
struct StepTimes {
  double data = 0;     // reading and cutting sequences
  double compute = 0;  // forward, backward and what it waits for of exchanges
  double agree = 0;    // the small message by which all ranks agree: the wait for the slowest
  double update = 0;   // optimizer and gathering of parameters
};

struct StepOutcome {
  double loss = 0;       // nats per token, over the global batch
  double grad_norm = 0;  // before clipping
  bool applied = false;
  StepWishes wishes{};  // sums over ranks
  StepTimes times;
};

class TrainingStep {
 public:
  // Collective. `config.model.vocab` is known. All references must outlive this.
  TrainingStep(const RunConfig& config, const RunPlan& plan, const StepRanks& ranks, const StepOptions& options,
               Ops& ops);

  // Puts a micro-batch of this rank's tokens and targets, int32 [B, local tokens] on the host.
  using Load = std::function<void(int64_t micro, const Tensor& tokens_Bn, const Tensor& targets_Bn)>;
  // One step; collective. `wishes` is asked when the gradients are there. With `ops` other than those given at the
  // start the step runs on them, op by op.
  StepOutcome run(Ops& ops, const StepOrders& orders, const Load& load, const std::function<StepWishes()>& wishes);

  // Forward and backward on tokens that mean nothing, with gradients that mean nothing.
  void rehearse();
  // What was recorded is recorded anew: after a change of what ops or ranks do.
  void forget() { segments_.clear(); }
  bool recorded() const;

  const Tensor& params() const { return params_; }
  const ParameterTable& table() const { return table_; }
  ModelRanks& ranks() { return *model_ranks_; }
  TransMamba& model() { return *model_; }
  Arena& scratch() { return scratch_; }
  Optimizer& optimizer() { return *optimizer_; }
  const GradReducer& reducer() const { return *reducer_; }
  const ModelMeasure& measure() const { return measure_; }
  // Of the matrix products of this rank in a step; what is computed twice counts once: it is work of the run's own
  // making.
  double flops() const { return flops_; }
  // Sent by every rank for the one small message of a step.
  static constexpr int64_t agreed_bytes() { return (kStep - kSums) * static_cast<int64_t>(sizeof(double)); }
  // Of the device, all that was planned.
  int64_t memory_bytes() const;

 private:
  // Where numbers stand on the device, float64: sums and wishes together, since one message agrees on both; last the
  // sums that another rank counts.
  static constexpr int64_t kSums = 0, kWishes = kSums + kScalars<StepSums>, kStep = kWishes + kStepWishes,
                           kLimits = kStep + kScalars<StepScalars>, kSpare = kLimits + kScalars<StepLimits>,
                           kPlaces = kSpare + kScalars<StepSums>;
  // A part of the step that is issued at once; run once op by op, then recorded.
  struct Segment {
    bool ran = false;
    std::unique_ptr<Recording> recording;
  };
  enum class Part : uint8_t { first, middle, last, only, agree, update };

  Tensor numbers(int64_t first, int64_t count) const {
    return numbers_.tensor({kPlaces}, DType::f64).slice(0, first, count);
  }
  Part part_of(int64_t micro) const;
  void issue(Ops& ops, Part part);
  void micro_batch(Ops& ops, bool first, bool last);
  void agree(Ops& ops);
  void update(Ops& ops);
  std::vector<ConstTensor> counted_gradients() const;

  const StepRanks ranks_;
  const StepOptions options_;
  const Recompute level_;
  Ops& ops_;
  const ParameterTable table_;
  const std::unique_ptr<ModelRanks> model_ranks_;
  const ModelMeasure measure_;
  const double flops_, grad_scale_;
  Arena saved_, scratch_;
  Buffer params_buffer_, grads_buffer_, tokens_buffer_, host_tokens_, numbers_;
  Tensor params_, grads_, tokens_2Bn_, host_tokens_2Bn_;
  std::unique_ptr<TransMamba> model_;
  std::unique_ptr<GradReducer> reducer_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<Tensor> gradients_;  // of what the optimizer owns
  std::map<Part, Segment> segments_;
};

}  // namespace tmamba
