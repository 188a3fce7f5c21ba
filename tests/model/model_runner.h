// A model on one rank and device with its buffers, for tests.
#pragma once

#include <memory>
#include <vector>

#include "dist/comm/self_communicator.h"
#include "model/measure.h"

namespace tmamba {

class ModelRunner {
 public:
  struct Shape {
    int64_t batch = 1;
    int64_t tokens = 0;
    DType dtype = DType::f32;
    int fold = 1;
    Device device = Device::cpu;
    Recompute recompute = Recompute::none;
  };

  ModelRunner(const ModelConfig& config, const std::vector<int64_t>& transpoints, Shape shape)
      : config_(config),
        table_(config_),
        shape_(shape),
        ops_(make_ops(shape.device)),
        ranks_({.tokens = shape.tokens,
                .fold = shape.fold,
                .chunk = config.chunk,
                .conv_width = static_cast<int>(config.conv),
                .transpoints = transpoints},
               shape.batch, *ops_, self_, self_) {
    const int64_t size = table_.flat_size();
    const ModelMeasure measure = measure_model(config_, table_, ranks_, shape.dtype, shape.device, shape.recompute);
    saved_ = Arena(measure.saved_bytes, shape.device), scratch_ = Arena(measure.scratch_bytes, shape.device);
    params_buffer_ = Buffer({size}, shape.dtype, shape.device), grads_buffer_ = Buffer({size}, acc(), shape.device);
    sums_buffer_ = Buffer({2}, DType::f64, shape.device);
    tokens_buffer_ = Buffer({2, shape.batch, shape.tokens}, DType::i32, shape.device);
    model_ = std::make_unique<TransMamba>(config_, table_, ranks_, shape.dtype, saved_, shape.recompute);
  }

  // Returns the mean loss of [B, T + 1] tokens; with `backward` computes its gradients.
  double run(const std::vector<int32_t>& tokens_BT1, bool backward) {
    const int64_t B = shape_.batch, T = shape_.tokens;
    std::vector<int32_t> host;
    for (int64_t shift : {0, 1}) {
      for (int64_t b = 0; b < B; ++b) {
        const auto row = tokens_BT1.begin() + b * (T + 1) + shift;
        host.insert(host.end(), row, row + T);
      }
    }
    const Tensor tokens_2BT = tokens_buffer_.tensor({2, B, T}, DType::i32);
    copy_blocking(tokens_2BT, ConstTensor(host.data(), {2, B, T}, DType::i32));
    const TokenBatch batch{tokens_2BT.select(0, 0), tokens_2BT.select(0, 1)};
    const Tensor sums = sums_buffer_.tensor({2}, DType::f64);
    ops_->fill({sums, 0}), ops_->fill({grads(), 0});
    const LossSums to{sums.slice(0, 0, 1), sums.slice(0, 1, 1), {}};
    buckets_.clear();
    if (backward) {
      model_->forward_backward(*ops_, scratch_, params(), grads(), batch, 1.0 / static_cast<double>(B * T), to,
                               [&](int b) { buckets_.push_back(b); });
    } else {
      model_->forward(*ops_, scratch_, params(), batch, to);
    }
    double totals[2];
    ops_->synchronize();
    copy_blocking(Tensor(totals, {2}, DType::f64), sums);
    return totals[0] / totals[1];
  }

  // fill(flat) writes parameters to a host buffer of the accumulate type.
  template <class Fill>
  void set_params(Fill fill) {
    const int64_t size = table_.flat_size();
    const Buffer host({size}, acc()), staged({size}, acc(), shape_.device);
    fill(host.tensor({size}, acc()));
    copy_blocking(staged.tensor({size}, acc()), host.tensor({size}, acc()));
    ops_->copy({params(), staged.tensor({size}, acc())});
    ops_->synchronize();
  }

  Tensor params() const { return params_buffer_.tensor({table_.flat_size()}, shape_.dtype); }
  Tensor grads() const { return grads_buffer_.tensor({table_.flat_size()}, acc()); }
  const ParameterTable& table() const { return table_; }
  TransMamba& model() { return *model_; }
  Ops& ops() { return *ops_; }
  // The order in which buckets were reported complete by the last backward.
  const std::vector<int>& buckets() const { return buckets_; }

 private:
  DType acc() const { return accumulate_type(shape_.dtype); }

  ModelConfig config_;
  ParameterTable table_;
  Shape shape_;
  std::unique_ptr<Ops> ops_;
  SelfCommunicator self_{"self"};
  ModelRanks ranks_;
  Arena saved_{Device::cpu}, scratch_{Device::cpu};
  Buffer params_buffer_, grads_buffer_, sums_buffer_, tokens_buffer_;
  std::unique_ptr<TransMamba> model_;
  std::vector<int> buckets_;
};

}  // namespace tmamba
