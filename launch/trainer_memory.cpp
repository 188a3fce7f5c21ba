// Trainer: what a run needs, planned and allocated before its first step.
#include "launch/sharding.h"
#include "launch/trainer.h"
#include "model/measure.h"

namespace tmamba {

// A dry run of one step finds the exact memory and arithmetic; then everything is allocated once.
void Trainer::plan_memory() {
  const Device device = ops_->device();
  const int64_t B = micro_batch_;
  const DType dtype = config_.dtype(), acc = accumulate_type(dtype);
  transpoints_ = transpoints(config_.model.schedule, config_.model.layers, config_.data.seq_len);
  table_ = std::make_unique<ParameterTable>(config_.model, mesh_->coordinates().tp, shape_.tp);
  ranks_ = model_ranks(plan_, *ops_, mesh_->sp(), mesh_->tp());
  const int64_t n = ranks_->local_tokens(), size = table_->flat_size();

  const Recompute level = plan_.dims.recompute;
  const ModelMeasure measure = measure_model(config_.model, *table_, *ranks_, dtype, device, level);
  // What is computed twice counts once: it is work of the run's own making.
  const OpCounts once = measure_model(config_.model, *table_, *ranks_, dtype, device).counts;
  flops_per_step_ = once.matmul() * static_cast<double>(micro_batches_);

  params_buffer_ = Buffer({size}, dtype, device);
  grads_buffer_ = Buffer({size}, acc, device);
  params_ = params_buffer_.tensor({size}, dtype);
  grads_ = grads_buffer_.tensor({size}, acc);
  reducer_ =
      std::make_unique<GradReducer>(mesh_->zero(), mesh_->tp(), reduction_buckets(*table_),
                                    GradReducerOptions{.stage = static_cast<int>(config_.parallel.zero),
                                                       .dtype = acc,
                                                       .device = device,
                                                       .add = [this](Tensor y, ConstTensor x) { ops_->add(y, x); }});
  optimizer_ = std::make_unique<Optimizer>(owned_rows(*table_, *reducer_), dtype, device);
  gradients_ = owned_gradients(*table_, *reducer_, grads_);
  saved_ = Arena(measure.saved_bytes, device);
  scratch_ = Arena(measure.scratch_bytes, device);
  token_buffer_ = Buffer({2, B, n}, DType::i32, device);
  host_tokens_ = Buffer({2, B, n}, DType::i32);
  sum_buffer_ = Buffer({3}, DType::f64, device);
  model_ = std::make_unique<TransMamba>(config_.model, *table_, *ranks_, dtype, saved_, level);
}

// A step's ops on tokens that mean nothing; its gradients are thrown away.
void Trainer::rehearse() {
  const Tensor tokens_2Bn = token_buffer_.tensor({2, micro_batch_, ranks_->local_tokens()}, DType::i32);
  const Tensor sums_3 = sum_buffer_.tensor({3}, DType::f64);
  const Buffer zeros({tokens_2Bn.numel()}, DType::i32);
  copy_blocking(tokens_2Bn, zeros.tensor({2, micro_batch_, ranks_->local_tokens()}, DType::i32));
  model_->forward_backward(*ops_, scratch_, params_, grads_, {tokens_2Bn.select(0, 0), tokens_2Bn.select(0, 1)}, 1,
                           {.loss_1 = sums_3.slice(0, 0, 1), .count_1 = sums_3.slice(0, 1, 1), .loss_N = {}},
                           [](int) {});
}

int64_t Trainer::memory_bytes() const {
  return static_cast<int64_t>(params_buffer_.bytes() + grads_buffer_.bytes() + saved_.peak() + scratch_.peak() +
                              token_buffer_.bytes()) +
         optimizer_->state_bytes();
}

}  // namespace tmamba
