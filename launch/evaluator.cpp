#include "launch/evaluator.h"

#include <algorithm>
#include <numbers>

namespace tmamba {

double EvalResult::bits_per_byte() const { return nats / std::numbers::ln2 / static_cast<double>(bytes); }

EvalResult evaluate(Ops& ops, Arena& scratch, TransMamba& model, const TransMamba::Shape& shape, const Tensor& params,
                    const TokenFile& file, int64_t sequences, Communicator& dp) {
  const int64_t B = shape.batch, T = shape.tokens;
  Loader loader(file, T, 0, Order::sequential);
  const int64_t total = sequences > 0 ? std::min(sequences, loader.windows()) : loader.windows();
  Buffer device({2, B, T}, DType::i32, ops.device()), host({2, B, T}, DType::i32), sums({2}, DType::f64, ops.device());
  const Tensor device_2BT = device.tensor({2, B, T}, DType::i32), host_2BT = host.tensor({2, B, T}, DType::i32);
  const Tensor sums_2 = sums.tensor({2}, DType::f64);
  double bytes = 0;
  for (int64_t first = dp.rank() * B; first < total; first += dp.size() * B) {
    const int64_t count = std::min(B, total - first);
    const Batch batch = loader.load(first, count);
    std::fill_n(host_2BT.select(0, 0).data<int32_t>(), B * T, 0);
    std::fill_n(host_2BT.select(0, 1).data<int32_t>(), B * T, -1);  // rows without a sequence are not counted
    std::copy_n(batch.tokens_BT.data<int32_t>(), count * T, host_2BT.select(0, 0).data<int32_t>());
    std::copy_n(batch.targets_BT.data<int32_t>(), count * T, host_2BT.select(0, 1).data<int32_t>());
    for (int64_t i = 0; i < count * T; ++i) bytes += file.token_bytes()[static_cast<size_t>(batch.targets_BT.data<int32_t>()[i])];
    copy_blocking(device_2BT, host_2BT);
    model.forward(ops, scratch, params, {device_2BT.select(0, 0), device_2BT.select(0, 1)},
                  {.loss_1 = sums_2.slice(0, 0, 1), .count_1 = sums_2.slice(0, 1, 1), .loss_N = {}});
    ops.synchronize();
  }
  double values[3] = {0, 0, bytes};
  copy_blocking(Tensor(values, {2}, DType::f64), sums_2);
  dp.all_reduce(Tensor(values, {3}, DType::f64), ReduceOp::sum).wait();
  return {.nats = values[0], .tokens = static_cast<int64_t>(values[1]), .bytes = static_cast<int64_t>(values[2])};
}

}  // namespace tmamba
