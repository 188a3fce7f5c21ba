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
  numbers_ = Buffer({kPlaces}, DType::f64, device);
  reducer_ = std::make_unique<GradReducer>(
      ranks.zero, ranks.tp, reduction_buckets(table_),
      GradReducerOptions{.stage = options.zero, .dtype = acc, .device = device, .add = [this](Tensor y, ConstTensor x) {
                           ops_.add({y, x});
                         }});
  optimizer_ = std::make_unique<Optimizer>(owned_rows(table_, *reducer_), dtype, device);
  gradients_ = owned_gradients(table_, *reducer_, grads_);
  model_ = std::make_unique<TransMamba>(config.model, table_, *model_ranks_, dtype, saved_, level_);
}

int64_t TrainingStep::memory_bytes() const {
  return static_cast<int64_t>(params_buffer_.bytes() + grads_buffer_.bytes() + saved_.peak() + scratch_.peak() +
                              tokens_buffer_.bytes()) +
         optimizer_->state_bytes();
}

void TrainingStep::rehearse() {
  const Tensor sums_S = numbers(kSums, kScalars<StepSums>);
  std::memset(host_tokens_.data(), 0, host_tokens_.bytes());
  copy_blocking(tokens_2Bn_, host_tokens_2Bn_);
  model_->forward_backward(ops_, scratch_, params_, grads_, {tokens_2Bn_.select(0, 0), tokens_2Bn_.select(0, 1)}, 1,
                           {.loss_1 = scalar_in(sums_S, &StepSums::loss_sum),
                            .count_1 = scalar_in(sums_S, &StepSums::token_count),
                            .loss_N = {}},
                           [](int) {});
}

StepOutcome TrainingStep::run(Ops& ops, const StepOrders& orders, const Load& load,
                              const std::function<StepWishes()>& wishes) {
  const TraceRange trace("step", orders.number);
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
  // What the ranks want is asked as late as can be: a step may take long.
  ops.synchronize();
  times.compute += lap.next();
  std::array<double, kPlaces> host{};
  const StepScalars scalars = step_scalars(orders.number, orders.lr, options_.rule);
  std::ranges::copy(wishes(), host.begin() + kWishes);
  std::memcpy(host.data() + kStep, &scalars, sizeof(scalars));
  std::memcpy(host.data() + kLimits, &orders.limits, sizeof(orders.limits));
  copy_blocking(numbers(kWishes, kSpare - kWishes), Tensor(host.data() + kWishes, {kSpare - kWishes}, DType::f64));
  issue(ops, Part::agree);
  times.agree = lap.next();
  issue(ops, Part::update);
  ops.synchronize();
  copy_blocking(Tensor(host.data(), {kLimits}, DType::f64), numbers(0, kLimits));
  const StepSums& sums = *scalars_in<StepSums>(Tensor(host.data() + kSums, {kScalars<StepSums>}, DType::f64));
  const StepScalars& checked =
      *scalars_in<StepScalars>(Tensor(host.data() + kStep, {kScalars<StepScalars>}, DType::f64));
  StepOutcome outcome{.loss = sums.loss_sum / sums.token_count,
                      .grad_norm = std::sqrt(sums.grad_squares),
                      .applied = checked.applied != 0};
  times.update = lap.next();
  outcome.times = times;
  std::copy_n(host.begin() + kWishes, kStepWishes, outcome.wishes.begin());
  return outcome;
}

TrainingStep::Part TrainingStep::part_of(int64_t micro) const {
  const bool first = micro == 0, last = micro + 1 == options_.micro_batches;
  if (first) return last ? Part::only : Part::first;
  return last ? Part::last : Part::middle;
}

void TrainingStep::issue(Ops& ops, Part part) {
  const auto work = [&] {
    if (part == Part::agree) return agree(ops);
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

void TrainingStep::micro_batch(Ops& ops, bool first, bool last) {
  if (first) {
    ops.fill({numbers(kSums, kScalars<StepSums>), 0});
    reducer_->begin_step();
  }
  // Where every micro-batch is summed over the ranks at once, the next one starts from zero.
  if (first || reduces(false)) ops.fill({grads_, 0});
  // All tensor-parallel ranks have the loss of the tokens they share; one counts it.
  const Tensor sums_S = numbers(ranks_.at.tp == 0 ? kSums : kSpare, kScalars<StepSums>);
  model_->forward_backward(ops, scratch_, params_, grads_, {tokens_2Bn_.select(0, 0), tokens_2Bn_.select(0, 1)},
                           grad_scale_,
                           {.loss_1 = scalar_in(sums_S, &StepSums::loss_sum),
                            .count_1 = scalar_in(sums_S, &StepSums::token_count),
                            .loss_N = {}},
                           [&](int bucket) {
                             if (!reduces(last)) return;
                             const Slice range = reducer_->bucket_range(bucket);
                             reducer_->start(bucket, grads_.slice(0, range.begin, range.count));
                           });
  if (reduces(last)) reducer_->finish();
}

void TrainingStep::agree(Ops& ops) {
  const std::vector<ConstTensor> counted = counted_gradients();
  ops.sum_squares({scalar_in(numbers(kSums, kScalars<StepSums>), &StepSums::grad_squares), counted});
  ranks_.all.all_reduce(numbers(kSums, kStep - kSums), ReduceOp::sum).wait();
}

void TrainingStep::update(Ops& ops) {
  const Tensor step_S = numbers(kStep, kScalars<StepScalars>);
  ops.check_step({.step_S = step_S,
                  .sums_S = numbers(kSums, kScalars<StepSums>),
                  .limits_S = numbers(kLimits, kScalars<StepLimits>)});
  optimizer_->step(ops, params_, gradients_, options_.rule, step_S);
  reducer_->gather_parameters(params_);
}

// The gradients whose squares this rank adds to the global norm: together the ranks count every element once.
std::vector<ConstTensor> TrainingStep::counted_gradients() const {
  std::vector<ConstTensor> counted;
  const bool copies_others = reducer_->stage() == 0 && ranks_.shape.zero_rank(ranks_.at) > 0;
  for (size_t i = 0; i < gradients_.size() && !copies_others; ++i) {
    const bool replicated = optimizer_->owned()[i].parameter->shard == Shard::none;
    if (!replicated || ranks_.at.tp == 0) counted.push_back(gradients_[i]);
  }
  return counted;
}

}  // namespace tmamba
