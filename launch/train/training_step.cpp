#include "launch/train/training_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/trace_range.h"
#include "launch/cli/wall_time.h"
#include "launch/state/sharding.h"

namespace tmamba {

TrainingStep::TrainingStep(const RunConfig& config, const RunPlan& plan, const StepRanks& ranks,
                           const StepOptions& options, Ops& ops)
    : ranks_(ranks),
      options_(options),
      level_(plan.dims.recompute),
      ops_(ops),
      table_(config.model, ranks.at.tp, ranks.shape.tp),
      model_ranks_(model_ranks(plan, ops, ranks.sp, ranks.tp)),
      measure_(measure_model(config.model, table_, *model_ranks_, config.dtype(), ops.device(), level_)),
      flops_(measure_model(config.model, table_, *model_ranks_, config.dtype(), ops.device()).counts.matmul() *
             static_cast<double>(options.micro_batches)),
      grad_scale_(1.0 / static_cast<double>(options.global_sequences * plan.dims.tokens)),
      saved_(measure_.saved_bytes, ops.device()),
      scratch_(measure_.scratch_bytes, ops.device()) {
  const Device device = ops.device();
  const DType dtype = config.dtype(), acc = accumulate_type(dtype);
  const int64_t B = model_ranks_->batch(), n = model_ranks_->local_tokens(), size = table_.flat_size();
  params_buffer_ = Buffer({size}, dtype, device), grads_buffer_ = Buffer({size}, acc, device);
  params_ = params_buffer_.tensor({size}, dtype), grads_ = grads_buffer_.tensor({size}, acc);
  tokens_buffer_ = Buffer({2, B, n}, DType::i32, device), host_tokens_ = Buffer({2, B, n}, DType::i32);
  tokens_2Bn_ = tokens_buffer_.tensor({2, B, n}, DType::i32);
  host_tokens_2Bn_ = host_tokens_.tensor({2, B, n}, DType::i32);
  scalars_buffer_ = Buffer({kScalars<DeviceScalars>}, DType::f64, device);
  scalars_ = scalars_buffer_.tensor({kScalars<DeviceScalars>}, DType::f64);
  reducer_ = std::make_unique<GradReducer>(
      ranks.zero, ranks.tp, reduction_buckets(table_, config.train.optimizer),
      GradReducerOptions{
          .stage = config.parallel.zero, .dtype = acc, .device = device, .add = [this](Tensor y, ConstTensor x) {
            ops_.add({y, x});
          }});
  optimizer_ = std::make_unique<Optimizer>(
      owned_rows(table_, config.train.optimizer, reducer_->sharding(), ranks.shape.zero_rank(ranks.at)), dtype, device,
      config.train.optimizer);
  gradients_ = owned_gradients(table_, *reducer_, grads_);
  model_ = std::make_unique<TransMamba>(config.model, table_, *model_ranks_, dtype, saved_, level_);
}

int64_t TrainingStep::memory_bytes() const {
  return static_cast<int64_t>(params_buffer_.bytes() + grads_buffer_.bytes() + saved_.peak() + scratch_.peak() +
                              tokens_buffer_.bytes()) +
         optimizer_->state_bytes();
}

template <class First, class Last>
Tensor TrainingStep::members(const Tensor& all, First DeviceScalars::*first, Last DeviceScalars::*last) {
  const DeviceScalars layout;
  const auto place = [&](const auto& member) {
    return (reinterpret_cast<const char*>(&member) - reinterpret_cast<const char*>(&layout)) /
           static_cast<int64_t>(sizeof(double));
  };
  const int64_t begin = place(layout.*first), end = place(layout.*last) + kScalars<Last>;
  return all.slice(0, begin, end - begin);
}

void TrainingStep::warm_up() {
  std::memset(host_tokens_.data(), 0, host_tokens_.bytes());
  copy_blocking(tokens_2Bn_, host_tokens_2Bn_);
  model_->forward_backward(ops_, scratch_, params_, grads_, tokens(), 1, loss_sums(&DeviceScalars::uncounted),
                           [](int) {});
}

StepOutcome TrainingStep::run(Ops& ops, const StepInputs& inputs, const Load& load,
                              const std::function<StepVotes()>& votes) {
  const TraceRange trace("step", inputs.number);
  StepTimes times;
  Lap lap;
  for (int64_t micro = 0; micro < options_.micro_batches; ++micro) {
    const TraceRange micro_trace("micro-batch", micro);
    load(micro, host_tokens_2Bn_.select(0, 0), host_tokens_2Bn_.select(0, 1));
    times.data += lap.next();
    copy_blocking(tokens_2Bn_, host_tokens_2Bn_);
    issue(ops, part_of(micro));
    times.compute += lap.next();
  }
  // Votes are taken as late as possible: a step may take long.
  ops.synchronize();
  times.compute += lap.next();
  DeviceScalars host{
      .votes = votes(), .scalars = optimizer_->step_scalars(inputs.number, inputs.lr), .limits = inputs.limits};
  const auto copied = [](const Tensor& all) { return members(all, &DeviceScalars::votes, &DeviceScalars::limits); };
  const auto read = [](const Tensor& all) { return members(all, &DeviceScalars::sums, &DeviceScalars::scalars); };
  copy_blocking(copied(scalars_), copied(scalars_tensor(host)));
  issue(ops, Part::votes);
  times.votes = lap.next();
  issue(ops, Part::update);
  ops.synchronize();
  copy_blocking(read(scalars_tensor(host)), read(scalars_));
  times.update = lap.next();
  return {.loss = host.sums.loss_sum / host.sums.token_count,
          .grad_norm = std::sqrt(host.sums.grad_squares),
          .lr = inputs.lr,
          .applied = host.scalars.applied != 0,
          .votes = host.votes,
          .times = times};
}

TrainingStep::Part TrainingStep::part_of(int64_t micro) const {
  const bool first = micro == 0, last = micro + 1 == options_.micro_batches;
  if (first) return last ? Part::only : Part::first;
  return last ? Part::last : Part::middle;
}

void TrainingStep::issue(Ops& ops, Part part) {
  const auto work = [&] {
    if (part == Part::votes) return all_reduce_votes(ops);
    if (part == Part::update) return update(ops);
    micro_batch(ops, part == Part::first || part == Part::only, part == Part::last || part == Part::only);
  };
  if (!options_.record || &ops != &ops_) return work();
  Segment& segment = segments_[part];
  if (!segment.ran) {
    segment.ran = true;
    return work();
  }
  if (segment.recording && !segment.recording->valid()) segment.recording.reset();
  if (!segment.recording) segment.recording = ops.record(work);
  segment.recording ? segment.recording->replay() : work();
}

bool TrainingStep::recorded() const {
  return std::ranges::any_of(segments_, [](const auto& entry) { return entry.second.recording != nullptr; });
}

TokenBatch TrainingStep::tokens() const { return {tokens_2Bn_.select(0, 0), tokens_2Bn_.select(0, 1)}; }

LossSums TrainingStep::loss_sums(StepSums DeviceScalars::*member) const {
  const Tensor sums_S = scalars(member);
  return {.loss_1 = scalar_in(sums_S, &StepSums::loss_sum),
          .count_1 = scalar_in(sums_S, &StepSums::token_count),
          .loss_N = {}};
}

void TrainingStep::micro_batch(Ops& ops, bool first, bool last) {
  if (first) {
    ops.fill({scalars(&DeviceScalars::sums), 0});
    reducer_->begin_step();
  }
  if (reducer_->sharding().clears_gradients_before(first)) ops.fill({grads_, 0});
  const bool reduces = reducer_->sharding().reduces_after(last);
  // All tensor-parallel ranks compute the loss of the tokens they share; one counts it.
  const auto sums = loss_sums(ranks_.at.tp == 0 ? &DeviceScalars::sums : &DeviceScalars::uncounted);
  model_->forward_backward(ops, scratch_, params_, grads_, tokens(), grad_scale_, sums, [&](int bucket) {
    if (!reduces) return;
    const Slice range = reducer_->bucket_range(bucket);
    reducer_->start(bucket, grads_.slice(0, range.begin, range.count));
  });
  if (reduces) reducer_->finish();
}

void TrainingStep::all_reduce_votes(Ops& ops) {
  const std::vector<ConstTensor> counted = counted_gradients();
  ops.sum_squares({scalar_in(scalars(&DeviceScalars::sums), &StepSums::grad_squares), counted});
  ranks_.all.all_reduce(members(scalars_, &DeviceScalars::sums, &DeviceScalars::votes), ReduceOp::sum).wait();
}

void TrainingStep::update(Ops& ops) {
  const Tensor step_S = scalars(&DeviceScalars::scalars);
  ops.check_step(
      {.step_S = step_S, .sums_S = scalars(&DeviceScalars::sums), .limits_S = scalars(&DeviceScalars::limits)});
  optimizer_->step(ops, params_, gradients_, step_S);
  reducer_->gather_parameters(params_);
}

// The gradients whose squares this rank adds to the global norm: the ranks together count every element once.
std::vector<ConstTensor> TrainingStep::counted_gradients() const {
  std::vector<ConstTensor> counted;
  const bool counts = reducer_->sharding().represents_owned(ranks_.shape.zero_rank(ranks_.at));
  for (size_t i = 0; counts && i < gradients_.size(); ++i) {
    const bool replicated = optimizer_->owned()[i].parameter->shard == Shard::none;
    if (!replicated || ranks_.at.tp == 0) counted.push_back(gradients_[i]);
  }
  return counted;
}

}  // namespace tmamba
