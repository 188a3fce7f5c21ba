// Where the parameter table meets the ranks: gradient buckets for the reducer, and the rows this rank's optimizer owns.
#pragma once

#include <vector>

#include "dist/zero/grad_reducer.h"
#include "model/optimizer.h"
#include "model/parameters.h"

namespace tmamba {

// One bucket per bucket of the table: its parameters as blocks of rows of the flat buffer.
std::vector<Bucket> reduction_buckets(const ParameterTable& table);

// The rows that the optimizer of this rank updates, bucket by bucket.
std::vector<OwnedRows> owned_rows(const ParameterTable& table, const GradReducer& reducer);

// The summed gradients of those rows, in the same order, each in the shape of its rows.
std::vector<Tensor> owned_gradients(const ParameterTable& table, const GradReducer& reducer, const Tensor& grads);

}  // namespace tmamba
