#include "launch/state/sharding.h"

namespace tmamba {

namespace {

// Parameters of a bucket, in the order of the table: also the order of its blocks.
std::vector<const Parameter*> parameters_of(const ParameterTable& table, int bucket) {
  std::vector<const Parameter*> found;
  for (const Parameter& p : table.all()) {
    if (p.bucket == bucket) found.push_back(&p);
  }
  return found;
}

// Calls f(bucket, parameter, rows) for everything this rank owns.
template <class F>
void each_owned(const ParameterTable& table, const GradReducer& reducer, F&& f) {
  for (int bucket = 0; bucket < reducer.buckets(); ++bucket) {
    const std::vector<const Parameter*> parameters = parameters_of(table, bucket);
    for (const OwnedRowBlock& rows : reducer.owned(bucket))
      f(bucket, *parameters[static_cast<size_t>(rows.block)], rows);
  }
}

}  // namespace

std::vector<Bucket> reduction_buckets(const ParameterTable& table) {
  std::vector<Bucket> buckets(static_cast<size_t>(table.buckets()));
  for (const Parameter& p : table.all()) {
    buckets[static_cast<size_t>(p.bucket)].push_back({.begin = p.offset,
                                                      .rows = p.local_rows,
                                                      .row_elements = p.local_cols,
                                                      .replicated_over_tp = p.shard == Shard::none});
  }
  return buckets;
}

std::vector<OwnedRows> owned_rows(const ParameterTable& table, const GradReducer& reducer) {
  std::vector<OwnedRows> owned;
  each_owned(table, reducer, [&](int, const Parameter& p, const OwnedRowBlock& rows) {
    owned.push_back({&p, rows.first_row, rows.rows});
  });
  return owned;
}

std::vector<Tensor> owned_gradients(const ParameterTable& table, const GradReducer& reducer, const Tensor& grads) {
  std::vector<Tensor> gradients;
  each_owned(table, reducer, [&](int bucket, const Parameter& p, const OwnedRowBlock& rows) {
    const Tensor gradient = reducer.gradient(grads, bucket, rows);
    gradients.push_back(p.dims == 1 ? gradient.view({rows.rows}) : gradient);
  });
  return gradients;
}

}  // namespace tmamba
