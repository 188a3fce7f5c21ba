#include "launch/state/sharding.h"

namespace tmamba {

namespace {

// Calls f(bucket, parameter, rows) for everything that a rank owns, where owned(bucket) lists its rows of a bucket.
// Blocks of a bucket are its parameters in the order of the table.
template <class Owned, class F>
void each_owned(const ParameterTable& table, Owned&& owned, F&& f) {
  for (int bucket = 0; bucket < table.buckets(); ++bucket) {
    std::vector<const Parameter*> parameters;
    for (const Parameter& p : table.all()) {
      if (p.bucket == bucket) parameters.push_back(&p);
    }
    for (const OwnedRowBlock& rows : owned(bucket)) f(bucket, *parameters[static_cast<size_t>(rows.block)], rows);
  }
}

}  // namespace

std::vector<Bucket> reduction_buckets(const ParameterTable& table, const OptimizerOptions& optimizer) {
  std::vector<Bucket> buckets(static_cast<size_t>(table.buckets()));
  for (const Parameter& p : table.all()) {
    buckets[static_cast<size_t>(p.bucket)].push_back({.begin = p.offset,
                                                      .rows = p.local_rows,
                                                      .row_elements = p.local_cols,
                                                      .unit_rows = unit_rows(p, ownership_unit(optimizer, p)),
                                                      .replicated_over_tp = p.shard == Shard::none});
  }
  return buckets;
}

std::vector<OwnedRows> owned_rows(const ParameterTable& table, const OptimizerOptions& optimizer,
                                  const ZeroSharding& sharding, int zero_rank) {
  const std::vector<Bucket> buckets = reduction_buckets(table, optimizer);
  std::vector<OwnedRows> owned;
  each_owned(
      table, [&](int bucket) { return sharding.owned(buckets[static_cast<size_t>(bucket)], zero_rank); },
      [&](int, const Parameter& p, const OwnedRowBlock& rows) {
        owned.push_back({&p, rows.first_row, rows.rows});
      });
  return owned;
}

std::vector<Tensor> owned_gradients(const ParameterTable& table, const GradReducer& reducer, const Tensor& grads) {
  std::vector<Tensor> gradients;
  each_owned(
      table, [&](int bucket) { return reducer.owned(bucket); },
      [&](int bucket, const Parameter& p, const OwnedRowBlock& rows) {
        const Tensor gradient = reducer.gradient(grads, bucket, rows);
        gradients.push_back(p.dims == 1 ? gradient.view({rows.rows}) : gradient);
      });
  return gradients;
}

}  // namespace tmamba
