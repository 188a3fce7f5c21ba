#include "launch/eval/evaluator.h"

#include <algorithm>
#include <numbers>

namespace tmamba {

double EvalResult::bits_per_byte() const { return nats / std::numbers::ln2 / static_cast<double>(bytes); }

nlohmann::json valid_metrics(const EvalResult& result, const std::string& name, bool first) {
  const std::string suffix = first ? "" : "/" + name;
  return {{"valid_loss" + suffix, result.loss()}, {"valid_bits_per_byte" + suffix, result.bits_per_byte()}};
}

std::optional<EvalResult> evaluate(const EvalContext& context, const TokenFile& file, int64_t sequences) {
  const auto& [ops, scratch, model, ranks, params, mesh, world, stop] = context;
  const int64_t B = ranks.batch(), T = ranks.layout().tokens(), n = ranks.local_tokens();
  Loader loader(file, T, 0, Order::sequential);
  const int64_t total = sequences > 0 ? std::min(sequences, loader.windows()) : loader.windows();
  Buffer device({2, B, n}, DType::i32, ops.device()), local({2, B, n}, DType::i32), whole({2, B, T}, DType::i32);
  Buffer sums({2}, DType::f64, ops.device());
  const Tensor device_2Bn = device.tensor({2, B, n}, DType::i32), local_2Bn = local.tensor({2, B, n}, DType::i32);
  const Tensor whole_2BT = whole.tensor({2, B, T}, DType::i32), sums_2 = sums.tensor({2}, DType::f64);
  const MeshCoordinates at = mesh.coordinates();
  double bytes = 0;
  for (int64_t round = 0; round < total; round += mesh.shape().dp * B) {
    if (stop && stop()) return std::nullopt;
    const int64_t first = round + at.dp * B;
    if (first >= total) continue;
    const int64_t count = std::min(B, total - first);
    const Batch batch = loader.load(first, count);
    std::fill_n(whole_2BT.select(0, 0).data<int32_t>(), B * T, 0);
    std::fill_n(whole_2BT.select(0, 1).data<int32_t>(), B * T, -1);  // targets of -1 are not counted
    std::copy_n(batch.tokens_BT.data<int32_t>(), count * T, whole_2BT.select(0, 0).data<int32_t>());
    std::copy_n(batch.targets_BT.data<int32_t>(), count * T, whole_2BT.select(0, 1).data<int32_t>());
    for (int64_t i = 0; i < count * T; ++i)
      bytes += file.token_bytes()[static_cast<size_t>(batch.targets_BT.data<int32_t>()[i])];
    for (int64_t i = 0; i < 2; ++i) ranks.shard(local_2Bn.select(0, i), whole_2BT.select(0, i));
    copy_blocking(device_2Bn, local_2Bn);
    model.forward(ops, scratch, params, {device_2Bn.select(0, 0), device_2Bn.select(0, 1)},
                  {.loss_1 = sums_2.slice(0, 0, 1), .count_1 = sums_2.slice(0, 1, 1), .loss_N = {}});
    ops.synchronize();
  }
  // Tensor-parallel ranks have the same losses, and sequence ranks counted the same text: each is summed once.
  double values[3] = {0, 0, at.sp == 0 ? bytes : 0};
  copy_blocking(Tensor(values, {2}, DType::f64), sums_2);
  if (at.tp != 0) std::fill_n(values, 3, 0.0);
  world.all_reduce(Tensor(values, {3}, DType::f64), ReduceOp::sum).wait();
  return EvalResult{
      .nats = values[0], .tokens = static_cast<int64_t>(values[1]), .bytes = static_cast<int64_t>(values[2])};
}

}  // namespace tmamba
