#include "dist/planner/traffic.h"

#include <algorithm>
#include <utility>

#include "dist/comm/collective_args.h"
#include "dist/comm/shard.h"

namespace tmamba {

namespace {

void add(TrafficCounter& traffic, Collective op, int64_t calls, int64_t bytes) {
  traffic.calls[static_cast<size_t>(op)] += calls;
  traffic.bytes[static_cast<size_t>(op)] += bytes;
}

}  // namespace

TrafficCounter& operator+=(TrafficCounter& a, const TrafficCounter& b) {
  for (size_t i = 0; i < a.calls.size(); ++i) a.calls[i] += b.calls[i], a.bytes[i] += b.bytes[i];
  return a;
}

TrafficCounter operator-(TrafficCounter a, const TrafficCounter& b) { return a += -1 * b; }

TrafficCounter operator*(int64_t times, TrafficCounter a) {
  for (size_t i = 0; i < a.calls.size(); ++i) a.calls[i] *= times, a.bytes[i] *= times;
  return a;
}

TrafficCounter sequence_traffic(const Plan& plan, int rank) {
  TrafficCounter traffic;
  if (plan.dims.sp == 1) return traffic;
  for (const PlanStep& step : plan.programs.at(static_cast<size_t>(rank))) {
    int64_t bytes = 0;
    for (const PlanMessage& m : step.receives) bytes += m.bytes;
    add(traffic, plan.exchanges[static_cast<size_t>(step.exchange)].op, 1, bytes);
  }
  return traffic;
}

// Forward: rows are summed after the embedding and after each half of a layer, and gathered after each norm: 2 L + 1
// times. Backward: as often with sums and gathers exchanged, and those of recomputation. The head combines maximum, sum
// and target of each row.
TrafficCounter tensor_traffic(const PlanDims& dims, int64_t rows, int64_t loss_rows, int rank) {
  TrafficCounter traffic;
  if (dims.tp == 1) return traffic;
  const int64_t row_bytes = dims.dim * dims.activation_bytes, each_way = 2 * (2 * dims.layers() + 1);
  const int64_t sums = each_way + dims.layers() * sums_again(dims.recompute),
                gathers = each_way + dims.layers() * gathers_again(dims.recompute);
  const int64_t own = shard_of(rows, rank, dims.tp).count;
  for (const auto& [op, calls] : {std::pair{Collective::reduce_scatter, sums}, {Collective::all_gather, gathers}}) {
    add(traffic, op, calls, calls * received_bytes(op, rows * row_bytes, own * row_bytes, dims.tp));
  }
  for (int64_t begin = 0; begin < rows; begin += loss_rows) {
    const int64_t n = std::min(loss_rows, rows - begin);
    traffic += 3 * all_reduce_traffic(n * dims.state_bytes, dims.tp);
  }
  return traffic;
}

GradientTraffic reduction_traffic(const PlanDims& dims, std::span<const Bucket> buckets, int zero_rank) {
  GradientTraffic traffic;
  const int ranks = dims.sp * dims.dp;
  for (const Bucket& bucket : buckets) {
    const int64_t bytes = range_of(bucket).count * dims.state_bytes;
    if (bytes == 0) continue;
    for (const RowBlock& block : bucket) {
      if (dims.tp == 1 || !block.replicated_over_tp) continue;
      traffic.tp += all_reduce_traffic((block.end() - block.begin) * dims.state_bytes, dims.tp);
    }
    if (ranks == 1) continue;
    if (!dims.sharding().shards_optimizer()) {
      traffic.zero += all_reduce_traffic(bytes, ranks);
    } else {
      const int64_t own = dims.sharding().slice(bucket, zero_rank).count * dims.state_bytes;
      add(traffic.zero, Collective::reduce_scatter, 1, received_bytes(Collective::reduce_scatter, bytes, own, ranks));
    }
  }
  return traffic;
}

TrafficCounter parameter_traffic(const PlanDims& dims, std::span<const Bucket> buckets, int zero_rank) {
  TrafficCounter traffic;
  if (!dims.sharding().shards_optimizer()) return traffic;
  for (const Bucket& bucket : buckets) {
    const int64_t bytes = range_of(bucket).count * dims.activation_bytes;
    if (bytes == 0) continue;
    const int64_t own = dims.sharding().slice(bucket, zero_rank).count * dims.activation_bytes;
    add(traffic, Collective::all_gather, 1, received_bytes(Collective::all_gather, bytes, own, dims.sp * dims.dp));
  }
  return traffic;
}

int64_t reductions(const PlanDims& dims) { return dims.sharding().reductions(dims.micro_batches()); }

TrafficCounter all_reduce_traffic(int64_t bytes, int64_t ranks) {
  TrafficCounter traffic;
  add(traffic, Collective::all_reduce, 1, received_bytes(Collective::all_reduce, bytes, 0, static_cast<int>(ranks)));
  return traffic;
}

}  // namespace tmamba
