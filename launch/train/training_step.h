// class TrainingStep: one optimizer step of this rank and what it needs: parameters, gradients, activations, optimizer
// state and the exchanges with other ranks, sized by a simulated allocation and allocated once. On a device that can
// record, a step is issued by a few calls (CUDA graphs): the device itself decides whether the step is applied and how
// its gradients are scaled. Does no input or output of files.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "dist/world/mesh.h"
#include "dist/zero/grad_reducer.h"
#include "kernels/ops/step_scalars.h"
#include "launch/plan/run_plan.h"
#include "model/measure.h"
#include "model/optimizer.h"

namespace tmamba {

// Communicators of device tensors: along the axes of the mesh, and of all ranks.
struct StepRanks {
  Communicator &tp, &sp, &zero, &all;
  MeshShape shape;
  MeshCoordinates at;
};

struct StepOptions {
  int64_t micro_batches = 1;
  int64_t global_sequences = 1;  // over all data-parallel ranks and micro-batches; the loss is their mean
  bool record = true;
};

// What a rank asks for after this step: 1 for yes. All-reduced with the step's sums: then the number of ranks.
struct StepVotes {
  double time_up = 0;     // train.minutes are over
  double stop = 0;        // save and stop
  double save = 0;        // save a checkpoint
  double save_ready = 0;  // the rank's thread is done with its part of the save in flight
};

inline constexpr double kNoLimit = std::numeric_limits<double>::infinity();

struct StepInputs {
  int64_t number = 1;  // among the applied steps, from 1
  double lr = 0;
  StepLimits limits{.clip = 0, .max_loss = kNoLimit, .max_grad_norm = kNoLimit};
};

// Where the host's time in a step went, in seconds. On a GPU the wait for the slowest rank is in `update`.
struct StepTimes {
  double data = 0;     // reading and splitting sequences
  double compute = 0;  // forward and backward, with the communication they wait for
  double votes = 0;    // all-reduce of the sums and votes: the wait for the slowest rank
  double update = 0;   // optimizer and all-gather of parameters
};

struct StepOutcome {
  double loss = 0;       // nats per token, over the global batch
  double grad_norm = 0;  // before clipping
  double lr = 0;
  bool applied = false;  // else skipped: loss or gradient norm was not finite or over its limit
  StepVotes votes;       // summed over ranks
  StepTimes times;

  bool spike() const { return !applied && std::isfinite(loss) && std::isfinite(grad_norm); }
};

class TrainingStep {
 public:
  // Collective. `config.model.vocab` is known. All references must outlive this.
  TrainingStep(const RunConfig& config, const RunPlan& plan, const StepRanks& ranks, const StepOptions& options,
               Ops& ops);

  // Fills a micro-batch of this rank's tokens and targets, int32 [B, local tokens] on the host.
  using Load = std::function<void(int64_t micro, const Tensor& tokens_Bn, const Tensor& targets_Bn)>;
  // Runs one step; collective. `votes` is called when the gradients are complete. With `ops` other than those of the
  // constructor the step runs on them, op by op.
  StepOutcome run(Ops& ops, const StepInputs& inputs, const Load& load, const std::function<StepVotes()>& votes);

  // Runs forward and backward once, on token 0, so that every op has run. The gradients are not used.
  void warm_up();
  // Makes the next steps record again. Required after a change of kernel choices or of communication.
  void discard_recordings() { segments_.clear(); }
  bool recorded() const;

  const Tensor& params() const { return params_; }
  const ParameterTable& table() const { return table_; }
  ModelRanks& ranks() { return *model_ranks_; }
  TransMamba& model() { return *model_; }
  Arena& scratch() { return scratch_; }
  Optimizer& optimizer() { return *optimizer_; }
  const GradReducer& reducer() const { return *reducer_; }
  const ModelMeasure& measure() const { return measure_; }
  // FLOPs of this rank's GEMMs in a step. Recomputed GEMMs are not counted: the model does not need them.
  double flops() const { return flops_; }
  // Bytes of the all-reduce of sums and votes, from every rank in every step.
  static constexpr int64_t vote_bytes() { return sizeof(StepSums) + sizeof(StepVotes); }
  // Bytes this step allocated on the device; equals the plan's total.
  int64_t memory_bytes() const;

 private:
  // What a step keeps on the device. Sums and votes are adjacent: one all-reduce sums both.
  struct DeviceScalars {
    StepSums sums;
    StepVotes votes;
    StepScalars scalars;
    StepLimits limits;
    StepSums uncounted;  // of tokens that another tensor-parallel rank counts
  };
  // A part of the step that is issued at once; run once op by op, then recorded.
  struct Segment {
    bool ran = false;
    std::unique_ptr<Recording> recording;
  };
  enum class Part : uint8_t { first, middle, last, only, votes, update };

  // The members from `first` to `last` of the DeviceScalars in `all`, on the host or the device.
  template <class First, class Last>
  static Tensor members(const Tensor& all, First DeviceScalars::*first, Last DeviceScalars::*last);
  template <class Member>
  Tensor scalars(Member DeviceScalars::*member) const {
    return members(scalars_, member, member);
  }
  TokenBatch tokens() const;
  LossSums loss_sums(StepSums DeviceScalars::*member) const;
  Part part_of(int64_t micro) const;
  void issue(Ops& ops, Part part);
  void micro_batch(Ops& ops, bool first, bool last);
  void all_reduce_votes(Ops& ops);
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
  Buffer params_buffer_, grads_buffer_, tokens_buffer_, host_tokens_, scalars_buffer_;
  Tensor params_, grads_, tokens_2Bn_, host_tokens_2Bn_, scalars_;
  std::unique_ptr<TransMamba> model_;
  std::unique_ptr<GradReducer> reducer_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<Tensor> gradients_;  // of what the optimizer owns
  std::map<Part, Segment> segments_;
};

}  // namespace tmamba
