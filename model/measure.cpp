#include "model/measure.h"

namespace tmamba {

ModelMeasure measure_model(const ModelConfig& config, const ParameterTable& table, ModelRanks& ranks, DType dtype,
                           Device device, Recompute level, Pass pass) {
  Arena saved(device), scratch(device);
  const auto counting = make_counting_ops(device);
  const auto by_op = make_timed_ops(*counting);
  TransMamba model(config, table, ranks, dtype, saved, level);
  const Tensor params(nullptr, {table.flat_size()}, dtype, device);
  const Tensor tokens_Bn(nullptr, {ranks.batch(), ranks.local_tokens()}, DType::i32, device);
  const Tensor sum_1(nullptr, {1}, DType::f64, device);
  if (pass == Pass::forward) {
    model.forward(*by_op, scratch, params, {tokens_Bn, tokens_Bn}, {sum_1, sum_1, {}});
  } else {
    const Tensor grads(nullptr, {table.flat_size()}, accumulate_type(dtype), device);
    model.forward_backward(*by_op, scratch, params, grads, {tokens_Bn, tokens_Bn}, 1, {sum_1, sum_1, {}}, [](int) {});
  }
  return {.saved_bytes = saved.peak(),
          .scratch_bytes = scratch.peak(),
          .counts = counting->counts(),
          .ops = by_op->timings()};
}

}  // namespace tmamba
